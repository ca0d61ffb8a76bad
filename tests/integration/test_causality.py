"""A causal model stays causal, also after training: no earlier output depends on a later position."""

import copy

import pytest
import torch
from helpers.causal import CAUSAL, GPT, TCN
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


@evolve.operator("look_ahead_by_mean", preserves="exact")
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


@evolve.operator("look_ahead_by_padding", preserves="exact")
def _pad_on_both_sides(model, site, context):
    """Enlarges a kernel by zeros on both sides."""
    conv = model.get_submodule(site)
    conv.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 1)))
    conv.kernel_size = (conv.kernel_size[0] + 2,)
    conv.padding = (conv.padding[0] + conv.dilation[0],)
    return True, "Enlarged the kernel."


@evolve.operator("look_ahead_by_flag", preserves="no")
def _drop_the_mask(model, site, context):
    model.get_submodule(site).causal = False
    return True, "Dropped the mask."


@evolve.operator("look_ahead_by_buffer", preserves="exact")
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
