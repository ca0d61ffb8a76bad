"""One run that mixes the statistics of both modes catches what either mode alone would show."""

import math
import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

import evolve
from evolve.mutation.compare import difference
from evolve.operators import operators
from evolve.operators.widen import Widen
from evolve.structure.inputs import as_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import output_tensors, parts
from evolve.structure.probe import mixed_outputs, mixed_statistics, outputs_in_use

LOG = []  # outside of the model, where nobody takes it back after a run


class Net(nn.Module):
    """Convolutions around a BatchNorm that has seen something; logs the runs that compute something."""

    def __init__(self, asks=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        self.asks = asks

    def forward(self, x):
        scale = 1.0 if self.asks and self.training else 2.0
        if not isinstance(x, FakeTensor):
            LOG.append(scale)
        return scale * self.last(torch.relu(self.norm(self.first(x)))).mean((2, 3))


def images():
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def outputs(model, *, training):
    with undisturbed(model), torch.no_grad():
        return model.train(training)(images())


def shifts_a_running_mean(model):
    model.norm.running_mean[-1] += 0.1


def scales_a_running_variance(model):
    model.norm.running_var[-1] *= 1.5


def hides_a_scale_from_eval_mode(model):
    """BatchNorm takes a scale out in train mode; in eval mode half the weight makes up for it."""
    for tensor in (model.first.weight, model.first.bias, model.norm.running_mean):
        tensor[-1] *= 2
    model.norm.weight[-1] /= 2


@pytest.mark.parametrize(
    ("error", "shows_in_training"),
    [(shifts_a_running_mean, False), (scales_a_running_variance, False), (hides_a_scale_from_eval_mode, True)],
)
def test_an_error_that_shows_in_one_mode_alone_is_caught(monkeypatch, error, shows_in_training):
    model, apply, found = Net(), Widen.apply, {}
    before = {training: outputs(model, training=training) for training in (False, True)}

    def wrong(self, model, site, plan):
        change = apply(self, model, site, plan)
        with torch.no_grad():
            error(model)
        found.update({training: outputs(model, training=training) for training in before})
        return change

    monkeypatch.setattr(Widen, "apply", wrong)
    result = evolve.mutate(model, "widen", site="first", example_inputs=images())
    assert result.status == "rejected"
    assert "in eval or train mode the output changed" in result.message
    for training, expected in before.items():
        same = torch.allclose(found[training], expected, rtol=1e-5, atol=1e-6)
        assert same == (training != shows_in_training)


def doubles_a_weight(model):
    with torch.no_grad():
        model.last.weight.mul_(2)


def changes_settings(model):
    model.norm.momentum, model.asks, model.more = 0.5, True, nn.Linear(2, 2)
    model.norm.running_mean += 1
    model.last.weight.data = torch.zeros(2, 6, 1, 1)


def planned_by(monkeypatch, meddle):
    """Widens a model, where a plan also does what it must not."""
    plan = Widen.plan

    def meddling(self, model, site, probe):
        meddle(model)
        return plan(self, model, site, probe)

    monkeypatch.setattr(Widen, "plan", meddling)
    model = Net()
    return model, evolve.mutate(model, "widen", site="first", example_inputs=images())


def test_a_plan_that_writes_to_a_parameter_is_refused(monkeypatch):
    model, result = planned_by(monkeypatch, doubles_a_weight)
    assert result.status == "rejected"
    assert "`plan` of 'widen' wrote to the parameter 'last.weight'" in result.message
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in Net().state_dict().items())


def test_what_else_a_plan_changes_is_put_back(monkeypatch):
    model, result = planned_by(monkeypatch, changes_settings)
    assert result, result.message
    assert (model.norm.momentum, model.asks, hasattr(model, "more")) == (0.1, False, False)
    for training in (False, True):
        assert torch.allclose(outputs(model, training=training), outputs(Net(), training=training), atol=1e-5)
    rebuilt = Net()
    evolve.replay(rebuilt, [result.record])
    rebuilt.load_state_dict(model.state_dict())


@pytest.mark.parametrize(("operator", "asks", "runs"), [("widen", False, 2), ("widen", True, 4), ("narrow", False, 2)])
def test_models_run_no_more_often_than_tells_something(operator, asks, runs):
    LOG.clear()
    assert evolve.mutate(Net(asks), operator, site="first", example_inputs=images())
    assert len(LOG) == runs
    assert (1.0 in LOG) == asks  # train mode is run where the forward asks for it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_statistics_are_half_way_between_those_of_the_modes(dtype):
    norm, x = Net().to(dtype).norm.eval(), torch.randn(4, 6, 5, 5).mul(3).add(1).to(dtype)
    kept = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with torch.no_grad(), mixed_statistics():
        mixed, trained = norm(x), F.batch_norm(x, None, None, training=True)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    halves = ((norm.running_mean.double() + mean) / 2, (norm.running_var.double() + var) / 2)
    expected = F.batch_norm(x.double(), *halves, norm.weight.double(), norm.bias.double())
    assert torch.allclose(mixed.double(), expected, **({"atol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5}))
    assert torch.equal(trained, F.batch_norm(x, None, None, training=True))
    assert all(torch.equal(buffer, kept[name]) for name, buffer in norm.named_buffers())


@pytest.mark.parametrize("compiled", ["in place", "wrapped"])
def test_compiled_parts_take_notice(compiled):
    inputs = as_inputs(Net(), images())

    def run(model, mixed):
        (out,) = output_tensors((mixed_outputs if mixed else outputs_in_use)(model, inputs, 0))
        return out

    expected = {mixed: run(Net(), mixed) for mixed in (False, True)}
    assert not torch.allclose(expected[False], expected[True])
    model = Net()
    if compiled == "in place":
        model.norm.compile(backend="eager")
    else:
        model.norm = torch.compile(model.norm, backend="eager")
    for mixed in (True, False, True):
        assert torch.allclose(run(model, mixed), expected[mixed])


def test_hooks_of_every_module_may_read_the_mode():
    def uneven(module, args, output):
        return output / output.shape[1] if type(module) is nn.BatchNorm2d and module.training else None

    handle = nn.modules.module.register_module_forward_hook(uneven)
    try:
        result = evolve.mutate(Net(), "widen", site="first", example_inputs=images())
    finally:
        handle.remove()
    assert result.status == "rejected"
    assert "in train mode the output changed" in result.message


@pytest.fixture
def scratch_operators():
    """Forgets the operators that a test registers."""
    known = set(operators.names())
    yield
    for name in set(operators.names()) - known:
        operators.unregister(name)


MASKS = {
    "-1e9": lambda y, hidden: y.masked_fill(hidden, -1e9),
    "the least number": lambda y, hidden: y.masked_fill(hidden, torch.finfo(y.dtype).min),
    "added, as in transformers": lambda y, hidden: y + hidden.to(y.dtype) * torch.finfo(y.dtype).min,
    "the least number of half precision": lambda y, hidden: y.masked_fill(hidden, -65504.0),
    "-100": lambda y, hidden: y.masked_fill(hidden, -100.0),
    "infinity": lambda y, hidden: y.masked_fill(hidden, -math.inf),
}


class Masked(nn.Module):
    """Hides every second class, as a policy hides moves that are not allowed."""

    def __init__(self, mask, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 4, dtype=dtype)
        self.mask = mask

    def forward(self, x):
        y = self.last(torch.tanh(self.first(x)))
        return self.mask(y, torch.tensor([False, True, False, True]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("preserves", ["exact", "approximate"])
def test_a_mask_hides_no_change(scratch_operators, mask, dtype, preserves):
    @evolve.operator("shifts", preserves=preserves)
    def shifts(model, site, context):
        with torch.no_grad():
            model.last.bias += 0.4
        return True, "done"

    x = torch.linspace(-1, 1, 24).reshape(4, 6).to(dtype)
    result = evolve.mutate(Masked(MASKS[mask], dtype), "shifts", site="last", example_inputs=x)
    assert result.status == "rejected", result.message
    scale = Masked(lambda y, _: y[:, ::2], dtype)(x).abs().max().item()
    found = float(re.search(r"([\d.]+) relative", result.message)[1])
    assert found == pytest.approx(0.4 / scale, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_model_grows(mask, dtype):
    x = torch.linspace(-1, 1, 24).reshape(4, 6).to(dtype)
    result = evolve.mutate(Masked(MASKS[mask], dtype), "widen", site="first", example_inputs=x)
    assert result.success, result.message


@pytest.mark.parametrize(
    ("before", "after", "scale"),
    [
        ([1.0, 1e-8], [1.0, 2e-8], 1.0),  # rounding near zero beside a number of the usual size
        ([60.0, 1e-8], [60.0, 2e-8], 60.0),
        ([-1e9, 1.0], [-1e9, 1.5], 1.0),
        ([-1e9, 1.0], [-1e9, 1.0], 1e9),  # nothing changed
        ([-1e9, 1.0], [-2e9, 1.0], 1e9),  # what changes is no constant
        ([5000.0, 400.0], [5000.0, 410.0], 5000.0),
        ([-1e9, 0.0], [-1e9, 0.5], 0.0),
    ],
)
def test_the_scale_leaves_constants_of_masks_out(before, after, scale):
    leaf = difference(parts(torch.tensor(before)), parts(torch.tensor(after))).leaves[0]
    assert leaf.scale == scale


HOOKS = {
    "the root of nothing": lambda m, a, o: torch.sqrt(o * 0) + o,
    "a norm of nothing": lambda m, a, o: o + (o - o).pow(2).sum(-1, keepdim=True).sqrt(),
    "a branch not taken": lambda m, a, o: torch.where(o.abs() >= 0, o, torch.sqrt(-o.abs() - 1)),
}


@pytest.mark.parametrize("preserves", ["exact", "approximate", "no"])
@pytest.mark.parametrize("hook", HOOKS)
def test_old_gradients_that_become_nan_are_refused(scratch_operators, hook, preserves):
    @evolve.operator("hooks", preserves=preserves)
    def hooks(model, site, context):
        model.get_submodule(site).register_forward_hook(HOOKS[hook])
        return True, "done"

    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    result = evolve.mutate(model, "hooks", site="0", example_inputs=torch.ones(2, 6))
    assert result.status == "rejected"
    assert "the gradient of '0.weight' has become NaN or infinite" in result.message
    assert not model[0]._forward_hooks


def test_gradients_that_were_nan_before_are_no_fault_of_the_change(scratch_operators):
    @evolve.operator("wraps", preserves="no")
    def wraps(model, site, context):
        model[0] = nn.Sequential(model[0])  # the parameters are called otherwise now
        return True, "done"

    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].register_forward_hook(HOOKS["the root of nothing"])
    result = evolve.mutate(model, "wraps", site="0", example_inputs=torch.ones(2, 6))
    assert result.success, result.message
