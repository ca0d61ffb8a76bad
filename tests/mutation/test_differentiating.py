"""Models whose forward differentiates its own result, which it cannot do under `torch.no_grad()`."""

import pytest
import torch
from torch import nn

import evolve
from evolve.structure.latency import latency

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class Energy(nn.Module):
    """A potential; its subclasses differentiate it in one way each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)

    def energy(self, x):
        return self.last(self.act(self.first(x))).sum()


class Forces(Energy):
    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.energy(x)
        return energy, -torch.autograd.grad(energy, x, create_graph=True)[0]


class ForcesOfGivenPositions(Energy):
    """The positions that are passed in have to require gradients."""

    def forward(self, x):
        energy = self.energy(x)
        return {"energy": energy, "forces": -torch.autograd.grad(energy, x, create_graph=True)[0]}


class Laplacian(Energy):
    def forward(self, x):
        x = x.detach().requires_grad_()
        slope = torch.autograd.grad(self.energy(x), x, create_graph=True)[0]
        return torch.autograd.grad(slope.sum(), x, create_graph=True)[0]


class Penalty(Energy):
    def forward(self, x):
        value = self.energy(x)
        slopes = torch.autograd.grad(value, [self.first.weight, self.last.weight], create_graph=True)
        return value + sum(slope.square().sum() for slope in slopes)


class Backward(Energy):
    """Calls `backward()`, which leaves gradients in the parameters."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        self.energy(x).backward()
        return x.grad


class Functional(Energy):
    def forward(self, x):
        return torch.func.grad(self.energy)(x)


class TurnsThemOn(Energy):
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x), x, create_graph=self.training)[0]


class OnlyInTraining(Energy):
    def forward(self, x):
        if not self.training:
            return self.energy(x)
        return self.energy(x) + torch.autograd.grad(self.energy(x), self.first.weight, create_graph=True)[0].sum()


MODELS = [Forces, ForcesOfGivenPositions, Laplacian, Penalty, Backward, Functional, TurnsThemOn, OnlyInTraining]


def positions(model):
    return X.clone().requires_grad_(isinstance(model, ForcesOfGivenPositions))


def outputs(model):
    found = model(positions(model))
    found = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else (found,)
    return [out.detach() for out in found]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize(
    ("operator", "site", "options"),
    [
        ("residual", "first", {}),
        ("deepen", "first", {}),
        ("branch", "first", {}),
        ("swap", "act", {}),
        ("narrow", "first", {"factor": 0.5}),
        ("shrink_perturb", "last", {}),
    ],
)
def test_models_that_differentiate_are_changed(build, operator, site, options):
    model = build()
    before = outputs(model)
    model.zero_grad()
    model.first.weight.grad = kept = torch.ones_like(model.first.weight)
    result = evolve.mutate(model, operator, site=site, example_inputs=positions(model), seed=0, **options)
    assert result.success, result.message
    if operator != "narrow":
        assert model.first.weight.grad is kept
        assert torch.equal(kept, torch.ones_like(kept))
    assert all(p.grad is None for p in model.parameters() if p is not model.first.weight)
    delta = max(float((one - other).abs().max()) for one, other in zip(before, outputs(model), strict=True))
    if result.record.preserves == "exact":
        assert delta <= 1e-5
    if build is not OnlyInTraining:  # there, train mode counts too
        assert result.record.max_abs_diff == pytest.approx(delta, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("build", MODELS)
def test_looks_run_them_too(build, caplog):
    model = build()
    assert "first" in evolve.sites(model, "deepen", example_inputs=positions(model))
    assert evolve.analyse(model, positions(model)).groups
    assert latency(model, positions(model))[""] > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not caplog.records or all(record.levelname == "DEBUG" for record in caplog.records)


def test_inputs_are_made_up_for_them():
    result = evolve.mutate(Forces(), "residual", site="first")
    assert result.success, result.message
    assert "Not measured" not in result.message


def test_a_model_that_fails_either_way_is_said_to_fail():
    class Fails(Energy):
        def forward(self, x):
            return Forces.forward(self, x[:, :5])

    result = evolve.mutate(Fails(), "residual", site="first", example_inputs=X)
    assert result.status == "not_applicable"
    assert "fails on example inputs of shape (4, 6) before any change: RuntimeError: mat1 and mat2" in result.message


def test_a_weight_used_backwards_inside_the_forward_is_not_called_tied():
    group = next(group for group in evolve.analyse(Forces(), X).groups if group.name == "first")
    assert "in the forward and in a backward pass inside it" in group.mixed
