"""Operators that look at gradients: `widen` by GradMax and `narrow` by Taylor."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.care.ema import EMA
from evolve.evolver.config import EvolutionConfig


def network(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), activation, nn.Linear(16, 6)), torch.randn(64, 10), torch.randint(6, (64,))


def reader_gradient(model, x, y, old):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return model[2].weight.grad[:, old:]


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.GELU()])
def test_gradmax_reaches_the_largest_gradient_that_a_linear_bridge_has(activation):
    model, x, y = network(activation)
    # Evci et al. 2022: for a linear stretch the optimum are the singular values of the bridge's gradient.
    z = model(x)
    (slope,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    optimum = torch.linalg.svdvals(slope.T @ x)[:3].norm() * model[0].weight.norm(dim=1).mean()
    found = {}
    for init in ("zero_out", "gradmax"):
        changed = copy.deepcopy(model)
        result = evolve.mutate(
            changed,
            "widen",
            site="0",
            add=3,
            init=init,
            example_inputs=x,
            loss=lambda out: F.cross_entropy(out, y),
            seed=1,
        )
        assert result.success, result.message
        assert torch.allclose(changed(x), model(x), atol=1e-6)
        assert torch.equal(changed[2].weight[:, 16:], torch.zeros(6, 3))
        found[init] = reader_gradient(changed, x, y, 16).norm()
    norms = changed[0].weight[16:].norm(dim=1)
    assert torch.allclose(norms, model[0].weight.norm(dim=1).mean().expand(3), rtol=1e-4)
    assert found["gradmax"] > 1.3 * found["zero_out"]
    # Each sign of a ReLU or GELU passes about half of it.
    share = 0.99 if isinstance(activation, nn.Identity) else 0.5
    assert found["gradmax"] > share * optimum


def test_gradmax_needs_a_loss_and_one_group():
    model, x, _ = network(nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    without = evolve.mutate(model, "widen", site="0", init="gradmax", example_inputs=x)
    assert without.status == "not_applicable"
    assert "pass loss=" in without.message
    everywhere = evolve.mutate(model, "widen", site="*", init="gradmax", example_inputs=x, loss=lambda out: out.sum())
    assert "one group at a time" in everywhere.message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gradmax_on_convolutions_behind_batch_norm():
    torch.manual_seed(0)
    model = evolve.build_model("simple_cnn", num_classes=10)
    x, y = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    result = evolve.mutate(
        model,
        "widen",
        site="features.4",
        add=4,
        init="gradmax",
        example_inputs=x,
        loss=lambda out: F.cross_entropy(out, y),
    )
    assert result.success, result.message
    assert result.record.max_abs_diff < 1e-6
    model.eval()
    F.cross_entropy(model(x), y).backward()
    assert model.features[8].weight.grad[:, 64:].norm() > 3 * model.features[8].weight.grad[:, :64].norm() / 16**0.5


def test_taylor_takes_out_what_the_loss_misses_least():
    model, x, y = network(nn.ReLU())
    with torch.no_grad():
        model[2].weight[:, [3, 7, 8]] = 0.0  # nobody reads them, whatever their size
        model[0].weight[[3, 7, 8]] *= 10
    loss = lambda out: F.cross_entropy(out, y)  # noqa: E731
    before = model(x)
    result = evolve.mutate(model, "narrow", site="0", remove=3, criterion="taylor", example_inputs=x, loss=loss)
    assert result.success, result.message
    assert [group["steps"][0]["source"] for group in result.record.plan["groups"]] == [
        [i for i in range(16) if i not in (3, 7, 8)]
    ]
    assert torch.allclose(model(x), before, atol=1e-6)
    assert not evolve.mutate(model, "narrow", site="0", remove=3, criterion="taylor", example_inputs=x)


def test_the_evolver_hands_over_its_loss(tmp_path):
    inputs, targets = torch.randn(48, 10), torch.randint(6, (48,))
    evolver = evolve.Evolver(
        network(nn.ReLU())[0],
        (inputs, targets),
        (inputs, targets),
        batch_size=16,
        training=evolve.TrainingConfig(epochs=3, ema=0.9),
        evolution=EvolutionConfig(
            schedule={"name": "every", "options": {"epochs": 1}},
            operators=[
                {"name": "widen", "sites": ["0"], "options": {"init": "gradmax", "add": 4}},
                {"name": "narrow", "sites": ["0"], "options": {"criterion": "taylor", "batches": 2, "remove": 2}},
            ],
        ),
        progress=False,
    )
    result = evolver.run()
    assert (result.applied, result.refused) == (2, 0)
    assert evolver.model[0].out_features == 18


def test_an_average_of_the_weights_follows_its_parameters():
    model, x, _ = network(nn.ReLU())
    ema = EMA(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    ema.update(model)
    averaged = copy.deepcopy(model)
    with ema.applied_to(averaged), torch.no_grad():
        expected = averaged(x)
    result = evolve.mutate(model, "widen", site="0", add=5, example_inputs=x)
    ema.follow(model, result.cuts)
    assert ema.shadow["0.weight"].shape == (21, 10)
    with ema.applied_to(model), torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-5)
    fresh = evolve.mutate(model, "widen", site="0", add=2, init="zero_out", example_inputs=x)
    ema.follow(model, fresh.cuts)
    assert torch.equal(ema.shadow["0.weight"][21:], model[0].weight[21:])
