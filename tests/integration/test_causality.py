"""A causal model stays causal, also after training: no earlier output depends on a later position."""

import copy

import pytest
import torch
from helpers.causal import CAUSAL, GPT, TCN, Block, PaddedBefore, PixelCNN
from helpers.operators import registered
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.blocks.layers import SqueezeExcite
from evolve.models import build_model
from evolve.structure.causality import orders_of
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import probe

# What joins positions, with the options under which it does so in another way.
JOINING = {
    "attention": [{}, {"kind": "self"}],
    "branch": [{}, {"kind": "separable"}],
    "deepen": [{}, {"block": "transformer"}],
    "residual": [{}],
    "kernel": [{}],
    "swap": [{}],
    "remove": [{"preserves": "no"}],
    "widen": [{}],
}
STRICT = {"pixelcnn", "made"}


def _subject(name):
    if name == "llama":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    return CAUSAL[name], CAUSAL[name].build(), CAUSAL[name].inputs()


def _logits(out):
    return out if isinstance(out, torch.Tensor) else out.logits


def _train(model, optimizer, x):
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        flat = _logits(model(x)).flatten()
        (flat - torch.linspace(-2, 2, len(flat))).square().mean().backward()
        optimizer.step()


def _orders(model, x):
    inputs = as_inputs(model, x)
    return orders_of(model, probe(model, inputs))


@pytest.mark.parametrize("name", CAUSAL)
def test_the_order_is_found_and_nothing_is_touched(name):
    subject, model, x = _subject(name)
    before = copy.deepcopy(model.state_dict())
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert subject.ahead(model, x) == 0
    found = _orders(model, x)
    assert {order.place.axes for order in found} == {subject.axes[0]}
    assert any(order.axes == subject.axes[1] and order.lead == subject.lead for order in found)
    assert min(order.margin for order in found) == (1 if name in STRICT else -7 if name == "wavenet" else 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert pointers == [parameter.data_ptr() for parameter in model.parameters()]


@pytest.mark.parametrize("name", CAUSAL)
def test_no_operator_lets_a_causal_model_look_ahead(name):
    subject, model, x = _subject(name)
    applied = []
    for operator, variants in JOINING.items():
        for options in variants:
            places = evolve.sites(model, operator, example_inputs=x, **options)
            for site in places[:: max(1, (len(places) + 1) // 2)]:
                child = copy.deepcopy(model)
                optimizer = torch.optim.Adam(child.parameters(), lr=1e-2)
                ok, message = evolve.mutate(
                    child, operator, site=site, optimizer=optimizer, example_inputs=x, seed=1, **options
                )
                assert ok or "no gradient reaches" in message, f"{operator} at {site}: {message}"
                if ok:
                    _train(child, optimizer, x)
                    assert subject.ahead(child, x) == 0, f"{operator} at {site}"
                    applied.append(operator)
    expected = {"made": {"widen"}, "sequence_first": {"branch", "deepen", "residual"}}
    assert expected.get(name, {"attention", "deepen", "residual"}) <= set(applied)


def _mean_behind_a_gate(model, site, context):
    """Adds the mean over all positions behind a gate that starts at zero."""
    model.evolved_mean = _Mean(model.get_submodule(site))
    parent, _, name = site.rpartition(".")
    setattr(model.get_submodule(parent), name, model.evolved_mean)
    return True, "Added the mean."


class _Mean(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.gate = inner, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        out = self.inner(x)
        axis = 1 if isinstance(self.inner, (nn.Linear, nn.LayerNorm, nn.Sequential)) else -1
        return out + self.gate * out.mean(axis, keepdim=True)


def _pad_on_both_sides(model, site, context):
    """Enlarges a kernel by zeros on both sides."""
    conv = model.get_submodule(site)
    conv.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 1)))
    conv.kernel_size = (conv.kernel_size[0] + 2,)
    conv.padding = (conv.padding[0] + conv.dilation[0],)
    return True, "Enlarged the kernel."


def _drop_the_mask(model, site, context):
    model.get_submodule(site).causal = False
    return True, "Dropped the mask."


def _open_the_mask(model, site, context):
    """Opens the mask of a convolution whose weights are zero there: no new parameter."""
    layer = model.get_submodule(site)
    with torch.no_grad():
        layer.weight.mul_(layer.mask)
    layer.mask = torch.ones_like(layer.mask)
    return True, "Opened the mask."


@pytest.mark.parametrize(
    ("name", "operator", "site"),
    [
        ("gpt", "look_ahead_by_mean", "blocks.0.mlp"),
        ("gpt", "look_ahead_by_flag", "blocks.0"),
        ("flat_gpt", "look_ahead_by_mean", "norm"),
        ("tcn", "look_ahead_by_mean", "second"),
        ("tcn", "look_ahead_by_padding", "second.conv"),
        ("wavenet", "look_ahead_by_mean", "mixes.1"),
        ("pixelcnn", "look_ahead_by_buffer", "second"),
        ("pixelcnn", "look_ahead_by_mean", "hidden"),
        ("llama", "look_ahead_by_mean", "model.layers.0.mlp.up_proj"),
        ("spectrogram", "look_ahead_by_mean", "one"),
    ],
)
def test_a_plugin_that_looks_ahead_is_refused(name, operator, site):
    subject, model, x = _subject(name)
    before = copy.deepcopy(model.state_dict())
    ok, message = evolve.mutate(model, operator, site=site, example_inputs=x)
    assert not ok
    assert "the model is causal" in message
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert subject.ahead(model, x) == 0


class _Wrapped(nn.Module):
    """A causal model whose output is made of that of another: its logits are `inner`'s."""

    def __init__(self, inner, forward):
        super().__init__()
        self.inner, self.change = inner, forward

    def forward(self, x):
        return self.change(self.inner, x)


class _NanoGPT(GPT):
    """Logits of the last position alone."""

    def forward(self, tokens):
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, [-1]])


class _Strided(nn.Module):
    """(N, 2, 12) to (N, 3, 6)."""

    def __init__(self):
        super().__init__()
        self.pad, self.one, self.two = nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(2, 8, 3), nn.Conv1d(8, 8, 3, stride=2)
        self.head = nn.Conv1d(8, 3, 1)

    def forward(self, x):
        return self.head(F.relu(self.two(self.pad(F.relu(self.one(self.pad(x)))))))


class _Patches(nn.Module):
    """(N, 20) to (N, 5, 6): a GPT over patches of 4."""

    def __init__(self):
        super().__init__()
        self.read, self.block, self.head = nn.Linear(4, 16), Block(16, 2, causal=True), nn.Linear(16, 6)

    def forward(self, x):
        return self.head(self.block(self.read(x.unflatten(1, (-1, 4)))))


class _Bounded(PaddedBefore):
    def forward(self, x):
        if x.min() < 0 or x.max() > 1:
            raise ValueError("inputs must lie in [0, 1]")
        return super().forward(x)


def _wrapped(change, inner=GPT):
    return lambda: _Wrapped(inner(), change)


def _shifted_loss(model, t):
    return F.cross_entropy(model(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())


def _likelihood(model, t):
    logits = model(t[:, :-1]).log_softmax(-1)
    return logits.gather(-1, t[:, 1:, None]).sum((1, 2))


def _tokens():
    return torch.randint(0, 20, (4, 10))


# Build, inputs, the module whose output has an axis of positions, that axis, positions of the input for each of its.
HIDDEN = {
    "one_axis_for_all": (_wrapped(lambda m, t: m(t).flatten(1)), _tokens, "inner.head", 1, 1),
    "length_first": (_wrapped(lambda m, t: m(t).transpose(0, 1).flatten(0, 1)), _tokens, "inner.head", 1, 1),
    "shifted": (_wrapped(lambda m, t: m(t)[:, :-1].flatten(0, 1)), _tokens, "inner.head", 1, 1),
    "shifted_inputs": (_wrapped(lambda m, t: m(t[:, :-1]).reshape(-1, 20)), _tokens, "inner.head", 1, 1),
    "list": (_wrapped(lambda m, t: list(m(t).unbind(1))), _tokens, "inner.head", 1, 1),
    "pixels": (
        _wrapped(lambda m, x: m(x).permute(0, 2, 3, 1).reshape(-1, 4), PixelCNN),
        lambda: torch.randn(4, 1, 6, 6),
        "inner.head",
        2,
        1,
    ),
    "loss": (_wrapped(_shifted_loss), _tokens, "inner.head", 1, 1),
    "likelihood": (_wrapped(_likelihood), _tokens, "inner.head", 1, 1),
    "last_alone": (_NanoGPT, _tokens, "norm", 1, 1),
    "strided": (_Strided, lambda: torch.randn(4, 2, 12), "head", 2, 2),
    "patches": (_Patches, lambda: torch.randn(4, 20), "head", 1, 4),
    "bounded": (_Bounded, lambda: torch.rand(4, 3, 12), "head", 1, 1),
}


def _ahead(model, x, module, axis, stride):
    """The largest change of earlier positions of a module's output when later ones of the input change."""
    kept = []
    hook = model.get_submodule(module).register_forward_hook(lambda _, __, out: kept.append(out.detach()))
    along, most, training = (x.dim() - 2 if x.dim() == 4 else x.dim() - 1), 0.0, model.training
    model.eval()
    with torch.no_grad():
        model(x)
        for cut in range(stride, x.shape[along], stride):
            other = x.clone()
            late = other.narrow(along, cut, x.shape[along] - cut)
            late.copy_((late + 7) % 20 if x.dtype == torch.long else torch.rand_like(late))
            model(other)
            early = min(cut // stride, kept[0].shape[axis])
            most = max(most, float((kept[0] - kept[-1]).narrow(axis, 0, early).abs().max()))
    hook.remove()
    model.train(training)
    return most


@pytest.mark.parametrize("name", HIDDEN)
def test_an_order_that_the_shape_of_the_outputs_hides_is_kept(name):
    build, make, module, axis, stride = HIDDEN[name]
    torch.manual_seed(0)
    model, x = build(), make()
    assert _ahead(model, x, module, axis, stride) == 0
    assert _orders(model, x)
    applied = set()
    for operator in ("attention", "deepen", "residual"):
        places = evolve.sites(model, operator, example_inputs=x)
        for site in places[:: max(1, (len(places) + 1) // 2)]:
            child = copy.deepcopy(model)
            optimizer = torch.optim.Adam(child.parameters(), lr=1e-2)
            ok, message = evolve.mutate(child, operator, site=site, optimizer=optimizer, example_inputs=x, seed=1)
            if not ok:
                assert "no gradient reaches" in message or "causal" in message, message
                continue
            child.train()
            for _ in range(5):
                out = child(x)
                flat = torch.stack(out).flatten() if isinstance(out, list) else out.flatten()
                optimizer.zero_grad()
                (flat - torch.linspace(-2, 2, len(flat))).square().mean().backward()
                optimizer.step()
            assert _ahead(child, x, module, axis, stride) == 0, f"{operator} at {site}"
            applied.add(operator)
    assert {"deepen", "residual"} <= applied


def _dense():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 1)
    )


BOTH_WAYS = {
    "encoder": (lambda: GPT(causal=False), lambda: torch.randint(0, 20, (4, 10))),
    "dense_cnn": (_dense, lambda: torch.randn(2, 3, 8, 8)),
    "dense_signal": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 3, 3, padding=1)),
        lambda: torch.randn(2, 3, 9),
    ),
    "without_padding": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 3, 3)),
        lambda: torch.randn(2, 3, 9),
    ),
    "strided": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv1d(6, 3, 3, 2, 1)),
        lambda: torch.randn(2, 3, 16),
    ),
    "bidirectional_lstm": (
        lambda: _Both(),  # noqa: PLW0108 - defined below
        lambda: torch.randn(2, 9, 4),
    ),
    "encoder_with_a_loss": (
        lambda: _Wrapped(GPT(causal=False), lambda model, t: F.cross_entropy(model(t).flatten(0, 1), t.flatten())),
        lambda: torch.randint(0, 20, (4, 10)),
    ),
    "encoder_that_classifies": (
        lambda: _Wrapped(GPT(causal=False), lambda model, t: model(t).mean(1)),
        lambda: torch.randint(0, 20, (4, 10)),
    ),
    "patches_both_ways": (
        lambda: nn.Sequential(nn.Unflatten(1, (5, 4)), nn.Linear(4, 16), Block(16, 2, causal=False), nn.Linear(16, 6)),
        lambda: torch.randn(4, 20),
    ),
    "resnet": (lambda: build_model("small_resnet", num_classes=4), lambda: torch.randn(2, 3, 32, 32)),
    "vectors": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), lambda: torch.randn(5, 6)),
    "tokens_alone": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU()), lambda: torch.randn(5, 4, 6)),
}


class _Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 5, batch_first=True, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_models_that_see_both_ways_keep_their_sites(name):
    build, make = BOTH_WAYS[name]
    torch.manual_seed(0)
    model, x = build(), make()
    assert _orders(model, x) == ()
    site = evolve.sites(model, "deepen", example_inputs=x)[0]
    result = evolve.mutate(model, "deepen", site=site, example_inputs=x)
    assert result
    assert "past" not in result.record.plan


def test_a_kernel_grows_towards_the_past():
    torch.manual_seed(0)
    model, x = TCN(), torch.randn(4, 3, 12)
    conv, weight = model.second.conv, model.second.conv.weight.detach().clone()
    before = model.eval()(x)
    assert evolve.mutate(model, "kernel", site="second.conv", example_inputs=x)
    assert conv.kernel_size == (5,)
    assert torch.equal(conv.weight[..., 2:], weight)
    assert not conv.weight[..., :2].any()
    assert torch.allclose(model.eval()(x), before, atol=1e-6)
    assert evolve.mutate(model, "kernel", site="second.conv", example_inputs=x)  # it can go on
    assert conv.kernel_size == (7,)
    assert torch.equal(conv.weight[..., 4:], weight)
    assert torch.allclose(model.eval()(x), before, atol=1e-6)


def test_squeeze_excite_with_a_past_takes_the_mean_of_what_has_been():
    torch.manual_seed(0)
    block, x = SqueezeExcite(3, 2, past=[1]), torch.randn(2, 3, 4, 5)
    nn.init.ones_(block.gate)
    for last in range(5):
        seen = x[..., : last + 1]
        weight = torch.sigmoid(block.excite(F.silu(block.squeeze(seen.mean((2, 3))))))
        expected = x[..., last] * (1 + weight[..., None])
        assert torch.allclose(block(x)[..., last], expected, atol=1e-6)


def test_a_sequence_along_the_first_axis_is_not_taken_for_a_batch():
    _, model, x = _subject("sequence_first")
    ok, message = evolve.mutate(model, "attention", site="block", example_inputs=x)
    assert not ok
    assert "first axis" in message


PLUGINS = {
    _mean_behind_a_gate: ("look_ahead_by_mean", "exact"),
    _pad_on_both_sides: ("look_ahead_by_padding", "exact"),
    _drop_the_mask: ("look_ahead_by_flag", "no"),
    _open_the_mask: ("look_ahead_by_buffer", "exact"),
}


@pytest.fixture(autouse=True, scope="module")
def _plugins():
    yield from registered(PLUGINS)
