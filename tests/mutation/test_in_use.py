"""A mutation is verified as the model is used: no hook, no gradient, nothing of torch switched off."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.operators import operators
from evolve.structure.asks import asks_how_it_runs
from evolve.testing import Subject, check_operator

TOKENS = torch.linspace(-1, 1, 4 * 5 * 8).reshape(4, 5, 8)


class LowRank(nn.Linear):
    """A linear layer with a low-rank addition that starts at zero."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.down = nn.Parameter(torch.randn(2, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Module):
    """Stands around a module, and doubles where nobody watches."""

    def __init__(self, inner, told):
        super().__init__()
        self.inner, self.told = inner, told

    def forward(self, *args):
        out = self.inner(*args)
        return out if self.told(self, args) else 2 * out


def watched(*args):
    return torch.overrides.has_torch_function(args)


TOLD = {
    "gradients": lambda module, args: torch.is_grad_enabled(),
    "hooks": lambda module, args: bool(module._forward_hooks or module._compiled_call_impl),
    "train mode": lambda module, args: module.training,
    "function modes": lambda module, args: watched(*args),
    "dispatch modes": lambda module, args: torch.utils._python_dispatch._len_torch_dispatch_stack() > 0,
    "input needs gradients": lambda module, args: torch.is_grad_enabled() or args[0].requires_grad,
}


@pytest.fixture
def plugin():
    names = []

    def register(apply, preserves="exact"):
        names.append(f"plugin{len(names)}")
        evolve.operator(names[-1], preserves=preserves)(apply)
        return names[-1]

    yield register
    for name in names:
        operators.unregister(name)


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 3)).eval()


def wraps(model, site, context):
    layer = model.get_submodule(site)
    if type(layer) is not nn.Linear:
        return False, "no linear layer"
    model.set_submodule(site, nn.Sequential(layer))
    return True, "wrapped"


def low_rank(model, site, context):
    layer = model.get_submodule(site)
    if type(layer) is not nn.Linear:
        return False, "no linear layer"
    model.set_submodule(site, LowRank(layer).train(layer.training))
    return True, "added a low-rank term"


def test_what_only_the_fused_path_cannot_run_is_refused(plugin):
    model = encoder()
    before = model(TOKENS).detach()
    result = evolve.mutate(model, plugin(wraps), site="0.linear1", example_inputs=TOKENS)
    assert result.status == "rejected"
    assert "The changed model does not run: AttributeError" in result.message
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), before, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("told", TOLD)
def test_a_part_that_lies_to_those_who_watch_is_found_out(plugin, told, training):
    def lies(model, site, context):
        model.set_submodule(site, Doubled(model.get_submodule(site), TOLD[told]).train(training))
        return True, "wrapped"

    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).train(training)
    result = evolve.mutate(model, plugin(lies), site="0", example_inputs=TOKENS[0])
    assert result.status == "rejected"
    assert "declares to preserve" in result.message


class Asks(nn.Module):
    """Takes a path of its own where nobody watches, through a helper of its author's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        weight = self.last.weight if watched(x) else self.last.weight * self.last.in_features / 6
        return F.linear(torch.relu(self.first(x)), weight, self.last.bias)


def test_groups_are_run_in_use_where_code_asks_how_it_is_run():
    assert asks_how_it_runs(Asks())
    assert asks_how_it_runs(encoder())
    assert not asks_how_it_runs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2)))
    model = Asks()
    before = model(TOKENS).detach()
    result = evolve.mutate(model, "widen", site="first", example_inputs=TOKENS, seed=0)
    after = model(TOKENS).detach()
    assert result.status == "rejected"  # the width that is read there is another one afterwards
    assert torch.equal(before, after)


def test_the_contract_compares_with_and_without_gradients_after_a_move(plugin):
    zoo = {"encoder": Subject(encoder, lambda: TOKENS)}
    with pytest.raises(AssertionError, match=r"on encoder at '0.linear1': after training.*with and without gradients"):
        check_operator(plugin(low_rank), zoo)
    plain = Subject(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: TOKENS)
    assert check_operator(plugin(low_rank), {"plain": plain}) == 2


@pytest.mark.parametrize("operator", ["residual", "deepen", "branch", "attention", "widen", "narrow"])
def test_the_fused_path_agrees_with_the_other_one(operator):
    model = encoder()
    site = "0.linear1" if operator in ("widen", "narrow") else "0"
    result = evolve.mutate(model, operator, site=site, example_inputs=TOKENS, seed=0)
    assert result.success, result.message
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        fused = model(TOKENS)
    assert torch.allclose(fused, model(TOKENS), atol=1e-5)
