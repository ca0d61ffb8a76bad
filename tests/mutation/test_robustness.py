"""Inputs and models that have broken somebody's mutation: each works, or is refused with a reason and untouched."""

import collections
import functools

import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import evolve


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: on a busy machine threads wait for one another far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv_net():
    """Features, then adaptive pooling: takes images of any size."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, 2, 1))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 5)).eval()


def refused(model, words, site="0", **options):
    before = fingerprint(model)
    ok, message = evolve.mutate(model, "residual", site=site, seed=0, **options)
    assert ok is False
    assert words in message
    assert fingerprint(model) == before


def exact(model, x, site, operator="residual"):
    """Mutates, holds the outputs against those before, and returns the model after a step that reaches the block."""
    model.eval()
    run = (
        (lambda: model(**x))
        if isinstance(x, dict)
        else (lambda: model(*x))
        if isinstance(x, tuple)
        else lambda: model(x)
    )
    before = run()
    result = evolve.mutate(model, operator, site=site, example_inputs=x, seed=0)
    assert result.success, result.message
    assert result.record.max_abs_diff == 0
    after = run()
    for one, other in zip(torch.utils._pytree.tree_leaves(before), torch.utils._pytree.tree_leaves(after), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    return model


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (31, 47), (64, 64), (5, 3), (4, 4)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("operator", ["residual", "deepen"])
def test_other_sizes_and_batches_at_run_time(size, batch, operator):
    model = conv_net()
    x = torch.randn(batch, 3, *size)
    before = model(x)
    exact(model, torch.randn(2, 3, 32, 32), "0", operator)
    assert torch.equal(model(x), before)
    with torch.no_grad():
        for name, parameter in model.evolved.named_parameters():
            if "norm" in name and "weight" in name:
                parameter.fill_(1)
    assert not torch.equal(model(x), before)
    model.train()
    model(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.evolved.parameters())


def test_a_shortcut_that_cannot_match_adds_nothing_and_says_so_once(caplog):
    site = nn.Flatten(1, 2)
    model = nn.Sequential(nn.Linear(4, 6))
    assert evolve.mutate(model, "residual", site="0", example_inputs=torch.randn(2, 4), init="random")
    block = model.evolved.residual_0
    x, out = torch.randn(2, 3, 4), torch.randn(2, 6)
    for _ in range(3):
        assert block(x, out) is out
    assert caplog.text.count("adds nothing") == 1
    assert site(x).shape == (2, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("operator", ["residual", "deepen"])
def test_blocks_take_the_models_dtype(dtype, operator):
    model = exact(conv_net().to(dtype), torch.randn(2, 3, 8, 8).to(dtype), "0", operator)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_channels_last_stays():
    model = conv_net().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    exact(model, x, "0", "deepen")
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)
    assert model.evolved.deepen_0.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_first_layer_without_weights_needs_no_inputs():
    model = nn.Sequential(nn.Hardtanh(), conv_net())
    result = evolve.mutate(model, "residual", site="1.0")
    assert result.success
    assert result.record.max_abs_diff == 0


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.pair = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True)
        self.unused = nn.Bilinear(2, 2, 2)

    def forward(self, x):
        x = self.layer(torch.tanh(self.layer(x)))
        return {"out": self.pair(x)[0], "twice": (x, x.sum())}


def test_a_site_called_twice_works_in_both_calls():
    model, x = Twice(), torch.randn(2, 3, 4)
    exact(model, x, "layer")
    with torch.no_grad():
        model.evolved.residual_0.gate.fill_(1)
    linear = lambda t: F.linear(t, model.layer.weight, model.layer.bias) + t  # noqa: E731
    assert torch.allclose(model(x)["twice"][0], linear(torch.tanh(linear(x))), atol=1e-6)


def test_a_site_that_returns_a_tuple_or_is_never_reached_is_refused():
    refused(Twice(), "does not return one single tensor", "pair", example_inputs=torch.randn(2, 3, 4))
    refused(Twice(), "was not reached", "unused", example_inputs=torch.randn(2, 3, 4))
    refused(Twice(), "fails on example inputs", "layer", example_inputs=torch.randn(2, 3, 5))
    refused(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "same number of axes", "0:2", example_inputs=torch.ones(2, 3, 4)
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, tokens):
        return self.head(self.norm(self.block(self.embed(tokens))))


@pytest.mark.parametrize("site", ["block", "norm", "head", "block.linear1", "block.norm1"])
@pytest.mark.parametrize("operator", ["residual", "deepen"])
def test_attention_layer_norm_and_tied_weights(site, operator):
    model = exact(Tied().train(), torch.arange(12).reshape(2, 6) % 11, site, operator)
    assert model.head.weight is model.embed.weight


def test_frozen_layers_stay_frozen():
    model = conv_net().requires_grad_(False)
    exact(model, torch.randn(2, 3, 8, 8), "0")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"evolved.residual_0.{n}" for n in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    }


class Inputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, a, b):
        return {"sum": self.left(a) + self.right(b)}


class Batch(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 6)

    def forward(self, batch):
        return self.left(batch["a"]) * batch["scale"]


def test_several_inputs_by_position_and_by_name():
    a, b = torch.randn(2, 4), torch.randn(2, 3)
    exact(Inputs(), (a, b), "left")
    exact(Inputs(), {"a": a, "b": b}, "right")
    exact(Batch(), ({"a": a, "scale": 2.0},), "left")


def test_models_without_values_are_refused():
    refused(conv_net().to("meta"), "meta device")
    refused(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)), "lazy")


def test_wrappers_are_refused_with_advice(tmp_path):
    refused(nn.DataParallel(conv_net()), "`.module`")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        refused(nn.parallel.DistributedDataParallel(conv_net()), "`.module`")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("example_inputs", [None, torch.ones(2, 3, 8, 8)])
def test_a_look_leaves_no_trace_in_statistics_generators_and_gradients(example_inputs):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 6, 3)).train()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = fingerprint(model)
    assert evolve.sites(model, "residual", example_inputs=example_inputs)
    assert fingerprint(model) == before
    statistics = [b.clone() for b in model.buffers()]
    assert evolve.mutate(model, "residual", site="0:4", example_inputs=example_inputs)
    assert all(torch.equal(a, b) for a, b in zip(statistics, model[1].buffers(), strict=True))
    assert model.evolved.residual_0.norm.num_batches_tracked == 0
    assert all(m.training for m in model.modules())


class Padded(nn.Module):
    """A transformer encoder over tokens, some of which are padding; outputs where there is none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 5)
        self.double()

    def forward(self, tokens, padding=None):
        return self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=padding))


def padded_outputs(model, tokens, padding):
    """Fused and plain, with a mask and without; the fused forward cuts off what is padding in all samples."""
    model.eval()
    with torch.no_grad():
        fused = model(tokens, padding), model(tokens)
    plain = model(tokens, padding), model(tokens)
    length = fused[0].shape[1]
    return [out[:, :length][~padding[:, :length]] for out in (fused[0], plain[0])] + [fused[1], plain[1]]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("operator", "site", "options"),
    [
        ("widen", "embedding", {"init": "random", "add": 1}),  # five heads, which the fused forward does not take
        ("widen", "encoder.layers.0.linear1", {}),
        ("narrow", "encoder.layers.1.linear1", {"factor": 0.5}),
        ("residual", "encoder.layers.0", {}),
        ("residual", "encoder.layers.1.linear2", {}),
        ("deepen", "encoder", {}),
        ("attention", "encoder", {}),
    ],
)
def test_padding_in_a_transformer_encoder(operator, site, options, masked):
    model, tokens = Padded(), torch.arange(21).remainder(20).view(3, 7)
    padding = torch.arange(7)[None] >= torch.tensor([[4], [7], [6]])
    before = padded_outputs(model, tokens, padding)
    inputs = {"tokens": tokens, "padding": padding} if masked else tokens
    result = evolve.mutate(model, operator, site=site, example_inputs=inputs, seed=0, **options)
    assert result.success, result.message
    after = padded_outputs(model, tokens, padding)
    assert torch.allclose(after[0], after[1], atol=1e-10)
    if result.record.preserves == "exact":
        for one, other in zip(before, after, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-10)
    model.train()(tokens, padding).sum().backward()


class Compiled(nn.Module):
    """A part of it is a ScriptModule."""

    def __init__(self, build):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 8)
        self.middle = build(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        self.wide = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.wide(self.middle(self.stem(x)))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit")
@pytest.mark.parametrize("build", [torch.jit.script, lambda part: torch.jit.trace(part, torch.ones(2, 8))])
def test_script_modules_inside_stay_as_they_are(build):
    x = torch.randn(2, 4)
    model = Compiled(build)
    optimizer = torch.optim.Adam(model.parameters())
    assert evolve.sites(model, "widen", example_inputs=x) == ["wide"]
    assert evolve.sites(model, "residual", example_inputs=x) == ["stem", "wide", "head"]
    before = model(x)
    for operator, site in [("widen", "*"), ("residual", "wide"), ("branch", "stem")]:
        result = evolve.mutate(model, operator, site=site, example_inputs=x, optimizer=optimizer)
        assert result.success, result.message
    assert torch.allclose(model(x), before, atol=1e-6)
    state = fingerprint(model, optimizer)
    for operator, site, words in [
        ("widen", "stem", "a ScriptModule, whose code cannot be changed, keeps it"),
        ("widen", "middle.0", "'middle.0' is a ScriptModule or lies in one"),
        ("residual", "middle", "'middle' is a ScriptModule or lies in one"),
    ]:
        result = evolve.mutate(model, operator, site=site, example_inputs=x, optimizer=optimizer)
        assert result.status == "not_applicable"
        assert words in result.message
    assert fingerprint(model, optimizer) == state


class Watcher:
    """What users hang on a layer: keeps activations and numbers."""

    def __init__(self, module, before):
        self.kinds, self.last = set(), None
        add = module.register_forward_pre_hook if before else module.register_forward_hook
        self.handle = add(self.before if before else self.after)

    def before(self, module, args):
        self.after(module, args, args[0])

    def after(self, module, args, out):
        self.kinds.add(type(out))
        self.last = out.detach().numpy(), float(out.detach().sum())


@pytest.mark.parametrize("before", [True, False])
def test_hooks_that_look_on_see_real_tensors_only(before):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 4)
    unwatched = [(group.name, group.size, group.fixed) for group in evolve.analyse(model, x).groups]
    watcher = Watcher(model[1], before)
    analysis = evolve.analyse(model, x)
    assert [(group.name, group.size, group.fixed) for group in analysis.groups] == unwatched
    assert not any(tape.real for tape in analysis.tapes)
    result = evolve.mutate(model, "widen", site="0", example_inputs=x)
    assert result.success, result.message
    assert watcher.kinds == {torch.Tensor}
    model(torch.ones(5, 4))
    assert watcher.last[0].shape == (5, 16)
    watcher.handle.remove()
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


def test_hooks_that_change_the_forward_are_a_part_of_it():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)
    assert evolve.analyse(model, x).group("0").mixed == ""
    model[1].register_forward_hook(lambda module, args, out: out.softmax(-1))
    assert "a softmax over it" in evolve.analyse(model, x).group("0").mixed
    model[1]._forward_hooks.clear()
    model[1].register_forward_hook(lambda module, args, out: (out.mul_(2), None)[1])
    assert [op.name for op in evolve.analyse(model, x).tapes[0].ops].count("aten.mul_") == 1
    model[1]._forward_hooks.clear()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])
    assert "0.weight_g" in evolve.analyse(model, x).flow.sources


def test_a_site_that_takes_integers_offers_no_shortcut():
    model, x = nn.Sequential(nn.EmbeddingBag(20, 6), nn.Linear(6, 4)), torch.arange(12).view(2, 6)
    assert evolve.sites(model, "residual", example_inputs=x) == ["1"]
    assert evolve.sites(model, "branch", example_inputs=x) == ["1"]
    result = evolve.mutate(model, "residual", site="0", example_inputs=x)
    assert result.status == "not_applicable"
    assert "takes integers" in result.message


class Graph(nn.Module):
    """A graph network over a sparse matrix of neighbours."""

    def __init__(self, layout):
        super().__init__()
        torch.manual_seed(0)
        neighbours = torch.eye(5) + torch.eye(5).roll(1, 0)
        self.register_buffer("neighbours", neighbours.to_sparse_csr() if layout == "csr" else neighbours.to_sparse())
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(torch.relu(torch.sparse.mm(self.neighbours, self.first(x))))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers(layout):
    model, x = Graph(layout), torch.randn(5, 6)
    before, buffer = model(x), model.neighbours
    for operator, site in [("widen", "first"), ("residual", "first"), ("deepen", "second")]:
        result = evolve.mutate(model, operator, site=site, example_inputs=x, seed=0)
        assert result.success, result.message
    assert model.first.out_features == 16
    assert torch.allclose(model(x), before, atol=1e-6)
    assert model.neighbours is buffer
    with evolve.transaction(model) as change:
        model.neighbours.mul_(2)
        change.rollback()
    assert torch.allclose(model(x), before, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_momentum_follows():
    torch.manual_seed(0)
    x = torch.arange(12).view(2, 6)
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    old, before = optimizer.state[model[0].weight]["momentum_buffer"].to_dense().clone(), model(x)
    result = evolve.mutate(model, "widen", site="0", optimizer=optimizer, example_inputs=x, factor=1.5, seed=0)
    assert result.success, result.message
    assert torch.allclose(model(x), before, atol=1e-6)
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    step = result.record.plan["groups"][0]["steps"][0]
    assert momentum.is_sparse
    assert torch.allclose(momentum.to_dense(), old[:, step["source"]] * torch.tensor(step["shares"]))
    model(x).square().sum().backward()
    optimizer.step()


class Checkpointed(nn.Module):
    """Runs its middle anew in the backward pass, in the reentrant way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 6)
        self.middle = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(checkpoint(self.middle, self.stem(x), use_reentrant=True))


@pytest.mark.parametrize(
    ("operator", "site", "options"),
    [("residual", "middle", {}), ("deepen", "stem", {}), ("widen", "middle.0", {"init": "gradmax"})],
)
def test_reentrant_checkpoints(operator, site, options):
    model, x = Checkpointed(), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    steps = []
    model.stem.weight.register_post_accumulate_grad_hook(steps.append)
    before, gradient = model(x), model.stem.weight.grad.clone()
    result = evolve.mutate(
        model,
        operator,
        site=site,
        optimizer=optimizer,
        example_inputs=x,
        loss=lambda out: out.square().sum(),
        seed=0,
        **options,
    )
    assert result.success, result.message
    assert torch.allclose(model(x), before, atol=1e-6)
    assert torch.equal(model.stem.weight.grad, gradient)
    assert steps == []
    model(x).square().sum().backward()
    assert len(steps) == 1


class Mixed(nn.Module):
    """Computes in half precision between inputs and outputs of single precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.second(torch.relu(self.first(x)))
        return self.last(x.float())


def test_autocast_in_a_forward_rounds_as_half_precision_does():
    model, x = Mixed(), torch.randn(4, 6)
    before = model(x)
    result = evolve.mutate(model, "widen", site="first", example_inputs=x, seed=0)
    assert result.success, result.message
    assert torch.allclose(model(x), before, atol=1e-2)
    assert result.record.max_abs_diff > 1e-5


class Remembers(nn.Module):
    """Keeps what it has seen in containers in containers, in an object, in counters; draws from its own generator."""

    class State:
        hidden = None

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 8)
        self.bank, self.seen, self.nested = collections.deque(maxlen=4), collections.Counter(), {"a": [[]]}
        self.state, self.generator = self.State(), torch.Generator()

    def forward(self, x):
        if self.training:
            x = x + torch.randn(x.shape, generator=self.generator)
        h = torch.tanh(self.first(x))
        self.bank.append(h.detach().mean())
        self.seen["forward"] += 1
        self.nested["a"][0].append(h.detach())
        self.state.hidden = h.detach()
        return self.last(h + self.bank[-1])

    def kept(self):
        ids = [*map(id, self.bank)], [*map(id, self.nested["a"][0])], id(self.state.hidden)
        return ids, dict(self.seen), self.generator.get_state().tolist()


@pytest.mark.parametrize(("operator", "site"), [("widen", "first"), ("residual", "last"), ("remove", "first")])
def test_what_a_forward_keeps_is_as_before_a_look(operator, site):
    model, x = Remembers(), torch.randn(4, 3)
    model(x)
    before = model.kept()
    evolve.analyse(model, x)
    assert model.kept() == before
    result = evolve.mutate(model, operator, site=site, example_inputs=x)
    assert result.success == (operator != "remove"), result.message
    assert model.kept() == before
    assert type(model(x)) is torch.Tensor


@functools.lru_cache
def scale(width):
    return torch.tensor(float(width)).rsqrt()


def test_caches_of_functions_hold_no_tensor_of_a_recorded_run(caplog):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            q, k, v = self.q(x), self.k(x), self.v(x)
            return self.out((q @ k.mT * scale(q.shape[-1])).softmax(-1) @ v)

    scale.cache_clear()
    result = evolve.mutate(Scaled(), "narrow", site="q", example_inputs=torch.randn(2, 5, 3))
    assert result.success, result.message
    assert type(scale(4)) is type(scale(8)) is torch.Tensor
    assert "somewhere outside" not in caplog.text


SHELF = []


def test_a_forward_that_keeps_tensors_where_nobody_looks_is_told_of(caplog):
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            SHELF.append(self.layer(x))
            return SHELF[-1]

    evolve.analyse(Outside(), torch.randn(2, 3))
    SHELF.clear()
    assert "keeps tensors of a run that computed nothing, somewhere outside the model" in caplog.text


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 2), (64, 8), (512, 32), (7, 1)])
def test_a_group_norm_has_several_channels_in_a_group(channels, groups):
    model = nn.Sequential(nn.Linear(4, channels), nn.BatchNorm1d(channels), nn.Linear(channels, 2))
    assert evolve.mutate(model, "swap", site="1", example_inputs=torch.randn(4, 4))
    norm = next(module for module in model.modules() if isinstance(module, nn.GroupNorm))
    assert norm.num_groups == groups
    assert model.eval()(torch.randn(1, 4)).shape == (1, 2)
