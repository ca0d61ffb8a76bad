"""A site is changed without renaming what was there: references, keys, copies, pickles and compiled code stay right."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.errors import NotApplicable
from evolve.structure.sites import resolve
from evolve.surgery.attach import BlockStore, attach


class Net(nn.Module):
    """Features and a head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8, 5)
        self.body = self.features  # a second name for the same module

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

    def first_weight(self):
        return self.features[0].weight


def net():
    torch.manual_seed(0)
    return Net().eval()


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def by_hand(model, x):
    """The net with its shortcut, written out."""
    block = model.evolved.residual_0
    with torch.no_grad():
        out = x
        for layer in [model.features[i] for i in range(4)]:
            out = layer(out)
        y = F.conv2d(x, block.conv.weight, block.conv.bias, stride=block.conv.stride)
        norm = block.norm
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, 0.0, norm.eps)
        return F.linear((out + y).mean((2, 3)), model.head.weight, model.head.bias)


def mutated(model, site="features", **options):
    options = {"init": "random", "seed": 1} | options
    result = evolve.mutate(model, "residual", site=site, example_inputs=images(), **options)
    assert result.success, result.message
    return model


@pytest.mark.parametrize("training", [False, True])
def test_the_shortcut_computes_what_is_written(training):
    model = net()
    plain = model(images())
    mutated(model).train(training)
    expected = by_hand(model, images())
    torch.testing.assert_close(model(images()), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_references_held_elsewhere_keep_working():
    model = net()
    features, first, bound, parts = model.features, model.features[0], model.forward, model.features.forward
    calls = []
    features.register_forward_hook(lambda m, args, out: calls.append(tuple(out.shape)))
    mutated(model)
    calls.clear()
    expected = by_hand(model, images())
    assert model.features is features is model.body
    assert model.features[0] is first
    assert torch.allclose(model.head(features(images()).mean((2, 3))), expected, atol=1e-6)
    assert torch.allclose(bound(images()), expected, atol=1e-6)
    assert calls == [(2, 8, 4, 4)] * 2  # hooks see the output with the shortcut
    assert parts.__self__ is features


def test_classes_attributes_and_keys_stay():
    model = net()
    old, names = model.state_dict(), [name for name, _ in model.named_modules()]
    mutated(model)
    assert type(model) is Net
    assert isinstance(model.features, nn.Sequential)
    assert type(model.features).__name__ == "Sequential"
    assert model.features[0].weight is model.first_weight()
    assert torch.equal(model.features[0].weight, old["features.0.weight"])
    assert len(model.features) == 4
    assert [type(m).__name__ for m in model.features] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert [type(m).__name__ for m in model.features[1:3]] == ["BatchNorm2d", "ReLU"]
    assert type(model.features[-1]).__name__ == "MaxPool2d"
    assert list(model.state_dict())[: len(old)] == list(old)
    assert all(key.startswith("evolved.residual_0.") for key in list(model.state_dict())[len(old) :])
    assert [n for n, _ in model.named_modules()][: len(names)] == names
    keys = model.load_state_dict(old, strict=False)
    assert not keys.unexpected_keys
    assert all(key.startswith("evolved.") for key in keys.missing_keys)
    assert "Sequential(" in repr(model)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("site", ["features", "features.0", "features.1:3"])
def test_copies_are_whole_and_independent(how, site):
    model = mutated(net(), site)
    expected = model(images()).detach()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(images()), expected)
    assert twin.body is twin.features
    assert isinstance(twin.features, nn.Sequential)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared
    with torch.no_grad():
        for parameter in twin.evolved.parameters():  # the twin's site runs the twin's block
            parameter.add_(1)
    assert not torch.allclose(twin(images()), expected, atol=1e-4)
    assert torch.equal(model(images()), expected)
    assert evolve.mutate(twin, "deepen", site="features", example_inputs=images())
    assert torch.equal(model(images()), expected)


def test_a_part_is_copied_with_its_block():
    model = mutated(net())
    features = copy.deepcopy(model.features)
    assert torch.equal(features(images()), model.features(images()))


def test_a_mutated_model_is_freed_with_its_last_reference():
    model = mutated(net())
    seen = [weakref.ref(model), weakref.ref(model.evolved.residual_0)]
    del model
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


# torch.compile.


@pytest.fixture
def counting():
    """A backend that counts the graphs it compiles and runs them as they are."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    yield backend, graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("site", ["features", "features.0", "features.0:2"])
def test_compiled_before_the_mutation(counting, site):
    backend, graphs = counting
    model = net()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        plain = compiled(images())
        assert len(graphs) == 1
        result = evolve.mutate(compiled, "residual", site=site, example_inputs=images(), init="random", seed=1)
        assert result.success, result.message
        assert result.record.site == site
        graphs.clear()
        after = compiled(images())
        assert len(graphs) == 1  # compiled anew, in one piece
        assert torch.allclose(after, model(images()), atol=1e-6)
        assert not torch.allclose(after, plain, atol=1e-3)
        compiled(images())
        assert len(graphs) == 1


@pytest.mark.parametrize("site", ["features", "features.0", "features.0:2"])
def test_compiled_after_the_mutation_in_one_graph(counting, site):
    backend, graphs = counting
    model = net()
    plain = model(images())
    mutated(model, site)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        after = compiled(images())
    assert len(graphs) == 1
    assert torch.allclose(after, model(images()), atol=1e-6)
    assert not torch.allclose(after, plain, atol=1e-3)


def test_compiled_in_place_is_compiled_anew(counting):
    backend, graphs = counting
    model = net()
    model.compile(backend=backend)
    with torch.no_grad():
        plain = model(images())
        mutated(model)
        graphs.clear()
        after = model(images())
    assert len(graphs) == 1
    assert torch.allclose(after, by_hand(model, images()), atol=1e-6)
    assert not torch.allclose(after, plain, atol=1e-3)


def test_a_compiled_mutated_model_trains():
    torch._dynamo.reset()
    model = mutated(net()).train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for runner in (compiled, twin):
        runner(images()).square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    assert model.evolved.residual_0.conv.weight.grad.abs().sum() > 0


# Sequential roots and runs.


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6)).eval()


def test_a_sequential_root_keeps_its_length_and_order():
    model, x = chain(), torch.randn(3, 4)
    layers = list(model)
    result = evolve.mutate(model, "residual", site="0:2", example_inputs=x, init="identity")
    assert result.success, result.message
    assert len(model) == 3
    assert list(model) == layers
    assert model[-1] is layers[2]
    assert list(model[:2]) == layers[:2]
    expected = layers[2](layers[1](layers[0](x)) + x)
    assert torch.equal(model(x), expected)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    rebuilt = chain()
    evolve.replay(rebuilt, [result.record])
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(rebuilt(x), expected)


def test_runs_nest_and_stack_in_order():
    model, x = chain(), torch.randn(3, 4)
    first, _, last = list(model)
    for site in ("0:1", "0:2", "1"):
        assert evolve.mutate(model, "residual", site=site, example_inputs=x, init="identity"), site
    a = first(x) + x
    b = torch.tanh(a) + a + x
    assert torch.allclose(model(x), last(b))
    assert evolve.mutate(model, "residual", site="0:3", example_inputs=x, init="random")
    assert torch.allclose(model(x), last(b) + model.evolved.residual_3.linear(x))


def test_a_run_of_a_nested_sequential():
    model = net()
    layers = list(model.features)
    mutated(model, "features.0:3", init="random")
    x = images()
    out = layers[2](layers[1](layers[0](x)))
    out = model.evolved.residual_0(x, out)
    expected = model.head(layers[3](out).mean((2, 3)))
    assert torch.equal(model(x), expected)
    assert tuple(model.evolved.residual_0.conv.stride) == (1, 1)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("features.0:9", "has 4 children"),
        ("features.3:3", "has 4 children"),
        ("head.0:1", "is a Linear"),
        ("0:1", "'the model' is a Net"),
        ("features.7", "no submodule 'features.7'"),
        ("featuers.0:2", "'features'"),
    ],
)
def test_runs_that_are_not_there_are_refused(site, words):
    model = net()
    result = evolve.mutate(model, "residual", site=site, example_inputs=images())
    assert result.status == "not_applicable"
    assert words in result.message
    assert "evolved" not in dict(model.named_children())


def test_a_sequential_with_a_forward_of_its_own_has_no_runs():
    class Reversed(nn.Sequential):
        def forward(self, x):
            for layer in reversed(list(self)):
                x = layer(x)
            return x

    model = nn.Sequential(Reversed(nn.Linear(4, 5), nn.Linear(3, 4)))
    x = torch.randn(2, 3)
    plain = model(x)
    assert not evolve.mutate(model, "residual", site="0.0:1", example_inputs=x)
    assert evolve.mutate(model, "residual", site="0", example_inputs=x)
    assert torch.equal(model(x), plain)
    assert len(model[0]) == 2


def test_a_chain_of_children_runs_the_block_once():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x):
            for child in self.children():
                x = child(x)
            return x

    model, x = Chain(), torch.randn(2, 4)
    expected = torch.tanh(model.one(x) + x)
    assert evolve.mutate(model, "residual", site="one", example_inputs=x, init="identity")
    assert torch.equal(model(x), expected)


# What cannot be attached to.


def test_an_attribute_called_evolved_is_left_alone():
    model = net()
    model.evolved = nn.Linear(2, 2)
    result = evolve.mutate(model, "residual", site="features", example_inputs=images())
    assert result.status == "not_applicable"
    assert "'evolved' of its own" in result.message
    assert type(model.features) is nn.Sequential


def test_a_forward_in_the_instance_is_refused():
    model = net()
    model.features.forward = lambda x: x[:, :, ::2, ::2].repeat(1, 3, 1, 1)[:, :8]
    before = model(images())
    result = evolve.mutate(model, "residual", site="features", example_inputs=images())
    assert result.status == "not_applicable"
    assert "forward function of its own" in result.message
    assert torch.equal(model(images()), before)
    assert "evolved" not in dict(model.named_children())


def test_a_class_that_forbids_it_is_refused():
    class Stiff(nn.Linear):
        def __setattr__(self, key, value):
            if key == "__class__":
                raise TypeError("no other class")
            super().__setattr__(key, value)

    model = nn.Sequential(Stiff(3, 3))
    with pytest.raises(NotApplicable, match="no other class"):
        attach(model, resolve(model, "0"), nn.Identity(), name="x", parallel=False)


def test_blocks_take_the_sites_mode_and_the_store_passes_on():
    model = net()
    model.features.train()
    site = resolve(model, "features")
    name = attach(model, site, nn.Dropout(0.5), name="drop", parallel=False)
    assert name == "evolved.drop_0"
    assert attach(model, site, nn.ReLU(), name="drop", parallel=False) == "evolved.drop_1"
    assert model.get_submodule(name).training
    assert not model.evolved.training
    x = torch.randn(2)
    assert BlockStore()(x) is x


def test_keyword_arguments_reach_the_site_and_its_block():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(input=x)

    model, x = Keyword(), torch.randn(2, 4)
    expected = model.inner(x) + x
    assert evolve.mutate(model, "residual", site="inner", example_inputs=x, init="identity")
    assert torch.equal(model(x), expected)
