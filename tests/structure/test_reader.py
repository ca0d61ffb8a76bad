"""What a forward reads is noticed by whatever way it does, and what runs in a backward pass alone is tried."""

import copy
import pickle

import pytest
import torch
from torch import nn

import evolve


class Chain(nn.Module):
    """A chain whose forward does one thing more."""

    def __init__(self, more=lambda model, x: x, **parts):
        super().__init__()
        self.more = more
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.two(self.more(self, torch.relu(self.norm(self.one(x))))).flatten(1)


class Merged(nn.Module):
    """Takes a branch into account in training alone, as a flag that goes with the mode says."""

    def __init__(self):
        super().__init__()
        self.merged, self.branch = False, nn.Conv2d(6, 6, 1)

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return x if self.merged else x + self.branch(x)


def images():
    return torch.randn(4, 3, 5, 5)


def six_of_twelve(x):
    return torch.cat([x, x], 1)[:, :6]


def branch(asked):
    return Chain(lambda model, x: x + model.branch(x) if asked(model) else x, branch=nn.Conv2d(6, 6, 1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: branch(lambda model: model.norm.training),
        lambda: branch(lambda model: model.training is True),
        lambda: Chain(lambda model, x: model.part(x), part=Merged()),
    ],
    ids=["mode of a BatchNorm", "compared by identity", "flag set by train()"],
)
@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_what_runs_in_train_mode_alone_follows(build, operator):
    model = build()
    analysis = evolve.analyse(model, images())
    assert analysis.asks_mode
    assert [tape.training for tape in analysis.tapes] == [False, True]
    assert evolve.mutate(model, operator, site="one", example_inputs=images())
    model.train()(images()).sum().backward()


def test_a_script_module_may_read_its_mode():
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
    model = Chain(lambda model, x: model.part(x), part=scripted)
    assert evolve.analyse(model, images()).asks_mode
    result = evolve.mutate(model, "widen", site="one", example_inputs=images())
    assert result, result.message


def patched():
    model = Chain()
    plain = model.two.forward
    model.two.forward = lambda x: plain(six_of_twelve(x))
    return model


def hooked():
    model = Chain()
    model.two.register_forward_pre_hook(lambda module, args: (six_of_twelve(args[0]),))
    return model


def caught():
    def attempt(model, x):
        try:
            model.odd(x)
        except RuntimeError:
            return six_of_twelve(x)
        return x

    return Chain(attempt, odd=nn.Conv2d(5, 5, 1))


@pytest.mark.parametrize("build", [patched, hooked, caught])
def test_sizes_that_are_kept_in_the_name_of_a_layer_are_noticed(build):
    assert evolve.analyse(build(), images()).asks_size
    assert evolve.mutate(build(), "narrow", site="one", example_inputs=images()).status == "not_applicable"


def test_a_forward_may_set_a_mode():
    def frozen(model, x):
        model.norm.eval()
        return x.view(len(x), model.heads, 3, 5, 5).flatten(1, 2)

    analysis = evolve.analyse(Chain(frozen, heads=2), images())
    assert analysis.asks_mode
    assert ("", "heads", None) in analysis.tapes[0].settings


def test_what_a_forward_leaves_elsewhere_is_plain_and_can_be_saved():
    class Elsewhere:
        pass

    left = Elsewhere()

    def keep(model, x):
        left.width, left.mode = x.shape[1], model.training
        return x

    evolve.analyse(Chain(keep), images())
    assert type(left.mode) is bool
    assert type(copy.deepcopy(left).width) is int
    assert type(pickle.loads(pickle.dumps(left.width))) is int


def norms(kind):
    layers = {
        "layer": lambda: nn.LayerNorm([6, 5, 5], elementwise_affine=False),
        "group": lambda: nn.GroupNorm(3, 6, affine=False),
        "batch": lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False),
    }
    return nn.Sequential(nn.Conv2d(3, 6, 1), layers[kind](), nn.Conv2d(6, 2, 1)).eval()


@pytest.mark.parametrize(
    ("kind", "operator", "expected"),
    [
        ("layer", "widen", {"normalized_shape": (12, 5, 5)}),
        ("layer", "narrow", {"normalized_shape": (3, 5, 5)}),
        ("group", "widen", {"num_groups": 6, "num_channels": 12}),
        ("group", "narrow", {"num_groups": 2, "num_channels": 4}),
        ("batch", "widen", {"num_features": 12}),
    ],
)
def test_norms_without_scales_follow(kind, operator, expected):
    model, x = norms(kind), images()
    before = model(x)
    assert not evolve.analyse(model, x).asks_size
    result = evolve.mutate(model, operator, site="0", example_inputs=x)
    assert result, result.message
    assert {name: getattr(model[1], name) for name in expected} == expected
    if operator == "widen":
        assert torch.allclose(model(x), before, atol=1e-5)


def mask_gradients(model):
    mask = torch.ones_like(model.one.weight)
    model.one.weight.register_hook(lambda gradient: gradient * mask)


def view_gradients(model):
    model.norm.register_full_backward_hook(lambda module, given, _: (given[0].view(4, 6, 5, 5),))


@pytest.mark.parametrize("register", [mask_gradients, view_gradients])
@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_hooks_of_the_backward_pass_that_keep_a_size_are_found(register, operator):
    model = Chain()
    register(model)
    result = evolve.mutate(model, operator, site="one", example_inputs=images())
    assert result.status == "rejected"
    assert "a backward pass fails" in result.message
    model(images()).sum().backward()
