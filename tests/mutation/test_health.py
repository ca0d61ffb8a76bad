"""What no run survives is refused, whatever an operator declares."""

import math

import pytest
import torch
from torch import nn

import evolve
from evolve.mutation.health import Health
from evolve.operators import operators

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class Block(nn.Module):
    """Stands around a layer; what it adds is zero at first."""

    def __init__(self, layer, extra):
        super().__init__()
        self.layer, self.gate, self.extra = layer, nn.Parameter(torch.zeros(1)), extra

    def forward(self, x):
        y = self.layer(x)
        return y + self.extra(self.gate, y)


def fills(name, value, module="0"):
    def apply(model):
        with torch.no_grad():
            dict(model.named_parameters())[f"{module}.{name}"].view(-1)[0] = value

    return apply


def buffer(value, dtype=torch.float32):
    return lambda model: model[0].register_buffer("mark", torch.tensor([0.0, value], dtype=dtype))


def parameter(value):
    return lambda model: model[0].register_parameter("spare", nn.Parameter(torch.tensor([0.0, value])))


def running_variance(model):
    model[1].running_var[2] = math.inf


def around(extra):
    def apply(model):
        model[0] = Block(model[0], extra)

    return apply


def frozen(model):
    model.requires_grad_(False)


def detaches(model):
    model.add_module("end", nn.Identity())
    model.end.register_forward_hook(lambda module, args, out: out.detach())


def ends_in(value):
    def apply(model):
        model.add_module("end", nn.Identity())
        model.end.register_forward_hook(lambda module, args, out: torch.where(out > out.mean(), value, out))

    return apply


def only_when(training, value):
    def apply(model):
        model.add_module("end", nn.Identity())
        model.end.register_forward_hook(lambda module, args, out: out * value if module.training == training else out)

    return apply


REFUSED = {
    "nan weight": (fills("weight", math.nan), "the parameter '0.weight' holds NaN or infinity"),
    "infinite bias": (fills("bias", -math.inf, "3"), "the parameter '3.bias' holds NaN or infinity"),
    "nan buffer": (buffer(math.nan), "the new buffer '0.mark' holds NaN or infinity"),
    "nan buffer of half precision": (buffer(math.nan, torch.float16), "the new buffer '0.mark'"),
    "infinite buffer": (buffer(math.inf), "the new buffer '0.mark'"),
    "infinite statistics": (running_variance, "the buffer '1.running_var' holds NaN or infinity"),
    "new nan parameter": (parameter(math.nan), "the new parameter '0.spare'"),
    "nan output": (ends_in(math.nan), "the output has become NaN or infinite"),
    "infinite output": (ends_in(math.inf), "the output has become NaN or infinite"),
    "nan in train mode": (only_when(True, math.nan), "in train mode, the output has become NaN or infinite"),
    "nan in eval mode": (only_when(False, math.nan), "in eval mode, the output has become NaN or infinite"),
    "nan gradient": (
        around(lambda gate, y: gate.abs().sqrt() * y),
        "the gradient of the new parameter '0.gate' is not",
    ),
    "frozen": (frozen, "no trainable parameter is left"),
    "detached": (detaches, "no output depends on a trainable parameter any more"),
}
ALLOWED = {
    "mask": buffer(-math.inf),
    "one part frozen": lambda model: model[0].requires_grad_(False),
    "large weights": fills("weight", 1e38),
    "doubled": lambda model: model[3].weight.data.mul_(2),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def plugin():
    def register(apply):
        def operator(model, site, context):
            apply(model)
            return True, "Done."

        evolve.operator("breaks", preserves="no")(operator)
        return "breaks"

    yield register
    operators.unregister("breaks")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_training_impossible_is_refused(plugin, kind):
    apply, why = REFUSED[kind]
    model = net()
    before = {key: (value.clone(), value.requires_grad) for key, value in model.state_dict(keep_vars=True).items()}
    result = evolve.mutate(model, plugin(apply), site="0", example_inputs=X)
    assert result.status == "rejected"
    assert why in result.message
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) and after[k].requires_grad == r for k, (v, r) in before.items())


@pytest.mark.parametrize("kind", ALLOWED)
def test_the_rest_goes_on(plugin, kind):
    result = evolve.mutate(net(), plugin(ALLOWED[kind]), site="0", example_inputs=X)
    assert result.success, result.message


@pytest.mark.parametrize("kind", ["nan weight", "nan buffer", "frozen"])
def test_also_without_a_probe_batch(plugin, kind):
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, y):
            return self.net(x) + y

    apply, why = REFUSED[kind]
    result = evolve.mutate(Unknown(), plugin(lambda model: apply(model.net)), site="net.0")
    assert result.status == "rejected"
    assert why.split("'")[0] in result.message


def test_what_was_broken_before_may_stay(plugin):
    model = net()
    fills("weight", math.nan)(model)
    result = evolve.mutate(model, plugin(lambda model: model[3].weight.data.mul_(2)), site="0", example_inputs=X)
    assert result.success, result.message
    assert result.record.max_abs_diff is None or result.record.max_abs_diff >= 0
    frozen(model)
    assert evolve.mutate(model, "breaks", site="0", example_inputs=X).success


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_a_sum_that_overflows_is_not_taken_for_infinity(dtype):
    model = nn.Module()
    model.register_buffer("large", torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype))
    model.register_buffer("numbers", torch.arange(3))
    health = Health(nn.Module())
    assert health.faults(model) == []
    model.large[3, 5] = math.nan
    assert health.faults(model) == ["the new buffer 'large' holds NaN or infinity"]
