"""Whatever surrounds a call of `mutate`, it sees what changed, and what it makes can be trained."""

import contextlib

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import evolve
from evolve.operators import operators

X = torch.linspace(-1, 1, 96).reshape(16, 6)


class LooksOn(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class LooksDown(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def switched(set_to, value, back):
    set_to(value)
    try:
        yield
    finally:
        set_to(back)


@contextlib.contextmanager
def both(first, second):
    with first, second:
        yield


def autocast(dtype=torch.bfloat16, **options):
    return torch.autocast("cpu", dtype=dtype, **options)


SURROUNDINGS = {
    "autocast": autocast,
    "autocast in float16": lambda: autocast(torch.float16),
    "autocast without a cache": lambda: autocast(cache_enabled=False),
    "autocast in autocast": lambda: both(autocast(), autocast(torch.float16)),
    "no autocast in autocast": lambda: both(autocast(), autocast(enabled=False)),
    "inference mode": torch.inference_mode,
    "inference mode in autocast": lambda: both(autocast(), torch.inference_mode()),
    "no_grad": torch.no_grad,
    "no_grad in autocast": lambda: both(autocast(), torch.no_grad()),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "default float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: switched(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "saved tensors on the CPU": torch.autograd.graph.save_on_cpu,
    "no hooks for saved tensors": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
    "saved tensors may change": torch.autograd.graph.allow_mutation_on_saved_tensors,
    "anomaly mode": torch.autograd.detect_anomaly,
    "function mode": LooksOn,
    "dispatch mode": LooksDown,
    "FLOP counter": lambda: FlopCounterMode(display=False),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def doubles():
    def operator(model, site, context):
        with torch.no_grad():
            model.get_submodule(site).weight.mul_(2)
        return True, "Doubled."

    evolve.operator("doubles", preserves="exact")(operator)
    yield "doubles"
    operators.unregister("doubles")


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("operator", ["doubles", "widen", "residual", "deepen"])
def test_a_mutation_is_the_same_anywhere(doubles, surrounding, operator):
    alone, model = net(), net()
    expected = evolve.mutate(alone, operator, site="0", example_inputs=X, seed=0)
    with SURROUNDINGS[surrounding]():
        model(X)  # autocast may remember the weights from here on
        result = evolve.mutate(model, operator, site="0", example_inputs=X, seed=0)
        inside = model(X).float()
    assert result.status == expected.status
    assert expected.success == (operator != "doubles")
    if operator == "doubles":
        assert "the output changed by" in result.message
    shapes = {key: (value.shape, value.dtype, value.device) for key, value in model.state_dict().items()}
    assert shapes == {key: (value.shape, value.dtype, value.device) for key, value in alone.state_dict().items()}
    outside = model(X)
    assert torch.allclose(outside, net()(X), atol=1e-5)
    assert torch.allclose(outside, inside, atol=0.05)
    outside.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_autocast_measures_in_its_precision():
    model = net()
    with autocast():
        result = evolve.mutate(model, "widen", site="0", example_inputs=X, seed=0)
    assert result.success, result.message
    assert 1e-4 < result.record.max_abs_diff < 0.02


def test_an_analysis_does_not_outlive_autocast():
    model = net()
    outside = evolve.analyse(model, X)
    with autocast():
        inside = evolve.analyse(model, X)
    assert evolve.analyse(model, X) is not inside
    assert [group.name for group in inside.groups] == [group.name for group in outside.groups]


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.jacrev])
def test_inside_a_transform_nothing_is_changed(transform):
    model, answers = net(), []

    def loss(x):
        answers.append(evolve.mutate(model, "residual", site="0", example_inputs=X))
        return (x**2).sum()

    transform(loss)(torch.ones(2, 3))
    assert answers[0].status == "not_applicable"
    assert "Inside a transform of torch.func" in answers[0].message
    assert not hasattr(model, "evolved")


@pytest.mark.parametrize("surrounding", ["inference mode", "default device", "autocast", "no_grad"])
def test_a_replay_is_the_same_anywhere(surrounding):
    record = evolve.mutate(net(), "deepen", site="0", example_inputs=X, seed=0).record
    model = net()
    with SURROUNDINGS[surrounding]():
        evolve.replay(model, [record])
    model(X).sum().backward()
    assert all(parameter.device.type == "cpu" and parameter.grad is not None for parameter in model.parameters())
