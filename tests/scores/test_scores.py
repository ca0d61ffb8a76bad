"""Scores: slopes of would-be weights are those that the mutant's weights then have; what each score is blind to."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evolve import mutate
from evolve.blocks.layers import LinearBlock
from evolve.errors import NotApplicable
from evolve.models import build_model
from evolve.scores import Addition, addition, collect, scores
from evolve.scores.base import centred, halves, lower_bound, steepest
from evolve.scores.candidate_units import Reading
from evolve.testing.snapshot import ModelSnapshot

MLP = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
CNN = nn.Sequential(
    nn.Conv2d(2, 5, 3, padding=1, stride=2, padding_mode="circular"),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(2),
    nn.Conv2d(5, 4, 3, padding=1),
    nn.ReLU(inplace=True),
    nn.Flatten(),
    nn.Linear(16, 3),
)


def seen(model, shape, samples=40):
    """A model as it is before training, a batch for it, and the evidence."""
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    x, y = torch.randn(samples, *shape), torch.randint(3, (samples,))

    def loss(outputs):
        return F.cross_entropy(outputs, y)

    return model, x, loss, collect(model, x, loss, x[:4])


def whole(readings):
    return torch.cat([sum(halves(reading)).sum(0) for reading in readings], dim=1)


@pytest.mark.parametrize(("model", "shape"), [(MLP, (5,)), (CNN, (2, 8, 8))], ids=["mlp", "cnn"])
def test_collecting_leaves_no_trace_and_sees_what_autograd_sees(model, shape):
    model, x, loss, _ = seen(model, shape)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = ModelSnapshot(model, optimizer)
    evidence = collect(model, x, loss, x[:4])
    before.check_same(model, optimizer, "evidence was collected")
    assert not any(module._forward_hooks for module in model.modules())
    first = model[0](x)
    hidden = first.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(model[1:](hidden.clone())), hidden)
    torch.testing.assert_close(evidence.at("0").given, first)
    torch.testing.assert_close(evidence.at("0").slope, slope)


@pytest.mark.parametrize(
    ("model", "shape", "site", "reader"),
    [(MLP, (5,), "0", "2"), (CNN, (2, 8, 8), "0", "3"), (CNN, (2, 8, 8), "3", "6")],
    ids=["linear", "convolutions with a pool between", "convolution that is flattened"],
)
def test_slopes_of_a_wider_group_are_those_of_the_mutant(model, shape, site, reader):
    model, x, loss, evidence = seen(model, shape)
    added = addition(evidence, "widen", site, {"add": 3})
    readings = added.readings(added.directions, False)
    size = model.get_submodule(site).weight.shape[0]
    ok, message = mutate(model, "widen", site=site, example_inputs=x[:4], add=3, init="zero_out")
    assert ok, message
    maker = model.get_submodule(site)
    with torch.no_grad():
        maker.weight[size:] = added.directions.view_as(maker.weight[size:])
        maker.bias[size:] = maker.bias[:size].mean()
    weight = model.get_submodule(reader).weight
    (slope,) = torch.autograd.grad(loss(model(x)), weight)
    new = slope.unflatten(1, (size + 3, -1))[:, size:].reshape(len(weight), -1)
    torch.testing.assert_close(whole(readings), new.T, atol=1e-6, rtol=1e-4)


def test_slopes_of_a_block_are_those_of_the_mutant():
    model, x, loss, evidence = seen(MLP, (5,))
    torch.manual_seed(7)
    added = addition(evidence, "deepen", "0", {})
    torch.manual_seed(7)
    same = LinearBlock(6, 6)
    torch.testing.assert_close(added.directions, same.linear1.weight.detach())
    mutate(model, "deepen", site="0", example_inputs=x[:4], strict=True)
    block = model.evolved.deepen_0
    block.load_state_dict(same.state_dict())
    (slope,) = torch.autograd.grad(loss(model(x)), block.linear2.weight)
    torch.testing.assert_close(whole(added.readings(added.directions, False)).T, slope)
    assert (added.units, added.params) == (6, sum(p.numel() for p in block.parameters()))


@pytest.mark.parametrize(("site", "key"), [("0", "linear.weight"), ("2", "linear.weight")])
def test_slopes_of_a_projection_are_those_of_the_mutant(site, key):
    model, x, loss, evidence = seen(MLP, (5,))
    added = addition(evidence, "residual", site, {})
    mutate(model, "residual", site=site, example_inputs=x[:4], strict=True)
    weight = model.evolved.residual_0.get_parameter(key)
    (slope,) = torch.autograd.grad(loss(model(x)), weight)
    assert added.directions is None
    torch.testing.assert_close(whole(added.readings(None, False)).T, slope)


def test_slope_of_a_gate_is_that_of_the_mutant():
    model, x, loss, _ = seen(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)), (5,))
    evidence = collect(model, x, loss, x[:4])
    (reading,) = addition(evidence, "residual", "0", {}).readings(None, False)
    mutate(model, "residual", site="0", example_inputs=x[:4], strict=True)
    (slope,) = torch.autograd.grad(loss(model(x)), model.evolved.residual_0.gate)
    torch.testing.assert_close(whole([reading]).squeeze(), slope)


def test_costs_are_those_of_the_mutation():
    model, x, _, evidence = seen(CNN, (2, 8, 8))
    for operator, site, options in [("widen", "0", {"add": 3}), ("deepen", "3", {})]:
        added = addition(evidence, operator, site, options)
        mutant = copy.deepcopy(model)
        record = mutate(mutant, operator, site=site, example_inputs=x[:4], **options).record
        assert added.params == pytest.approx(record.params_after - record.params_before, abs=10)
        assert added.flops == pytest.approx(record.flops_after - record.flops_before, rel=1e-6)


def test_what_no_score_knows_is_told():
    _, _, _, evidence = seen(MLP, (5,))
    with pytest.raises(NotApplicable, match="No score knows what 'dropout' adds; known are attention, branch, deepen"):
        addition(evidence, "dropout", "0", {})
    with pytest.raises(NotApplicable, match="no group of channels or units called 'nowhere'"):
        addition(evidence, "widen", "nowhere", {})


def planted(noise=0.0, samples=4000):
    """Inputs of which one direction alone goes with the slopes, and units that are linear in them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 10, generator=generator)
    slopes = x[:, :1] * torch.tensor([[1.0, -2.0]]) + noise * torch.randn(samples, 2, generator=generator)
    number = torch.arange(samples)

    def readings(directions, half):
        rows = slice(None, None, 2) if half else slice(None)
        return [Reading((x @ directions.T)[rows, :, None], slopes[rows], None, number[rows], 1.0)]

    directions = F.normalize(torch.randn(2, 10, generator=generator), dim=1)
    return Addition(readings, directions, 2, 20, 40)


def test_directions_are_turned_towards_the_largest_slope():
    added = planted()
    best = steepest(added, added.directions)
    torch.testing.assert_close(best.norm(dim=1), torch.ones(2))
    assert best[:, 0].abs().max() > 0.99
    gradmax, sensli = (scores.get(name)().value(added) for name in ("gradmax", "sensli"))
    assert gradmax == pytest.approx((1 - 1 / 4) * 5 * 4000**2, rel=0.1)  # |sum of x0 times (1, -2)|^2, its lower bound
    assert sensli < 0.5 * gradmax


def of(name, reading):
    return float(scores.get(name)().of(reading).sum())


def reading_of(units, slopes, present=None):
    return Reading(units[:, :, None], slopes, present, torch.arange(len(units)), 1.0)


def test_noise_is_worth_nothing_on_the_average():
    torch.manual_seed(0)
    for name in scores:
        noise = [of(name, reading_of(torch.randn(200, 4), torch.randn(200, 3))) for _ in range(200)]
        signal = of(name, reading_of(units := torch.randn(200, 4), units[:, :3] + torch.randn(200, 3)))
        assert abs(sum(noise) / len(noise)) < 0.05 * signal, name


def test_a_lower_bound_is_seldom_above_zero_for_noise_and_three_quarters_of_what_is_certain():
    torch.manual_seed(0)
    noise = [
        lower_bound(scores.get("senn")().of(reading_of(torch.randn(64, 4), torch.randn(64, 3)))) for _ in range(300)
    ]
    assert sum(value > 0 for value in noise) < 0.06 * 300
    units = torch.randn(4000, 4)
    certain = scores.get("senn")().of(reading_of(units, units[:, :2]))
    assert lower_bound(certain) == pytest.approx(float(certain.sum()) * 3 / 4, rel=0.01)


def test_what_present_weights_can_do_does_not_count():
    torch.manual_seed(0)
    present, other = torch.randn(400, 5), torch.randn(400, 4)
    slopes = present[:, :2] + 0.01 * torch.randn(400, 2)
    assert of("tiny", reading_of(present[:, :4], slopes, present)) < 1e-3 * of(
        "tiny", reading_of(present[:, :4], slopes)
    )
    assert of("senn", reading_of(present[:, :4], slopes, present)) < 1e-2 * of(
        "senn", reading_of(present[:, :4], slopes)
    )
    assert of("tiny", reading_of(other, other[:, :2], present)) > 0.9 * of("tiny", reading_of(other, other[:, :2]))


@pytest.mark.parametrize("name", list(scores))
def test_means_that_a_bias_follows_do_not_count(name):
    torch.manual_seed(0)
    units, slopes = torch.randn(128, 4), torch.randn(128, 3)
    slopes[:, 0] += units[:, 0]
    present = units[:, :1] + torch.randn(128, 1)

    def bound(*reading):
        return lower_bound(scores.get(name)().of(centred(reading_of(*reading))))

    alone, beside = bound(units, slopes), bound(units, slopes, present)
    assert alone > 0
    assert bound(units + 30, slopes + 2) == pytest.approx(alone, rel=1e-3)
    assert bound(units + 30, slopes + 2, present + 7) == pytest.approx(beside, rel=1e-3)


def test_scales_that_do_not_matter():
    torch.manual_seed(0)
    units = torch.randn(400, 4)
    slopes = units[:, :2] + torch.randn(400, 2)
    plain, larger, steeper = (reading_of(units, slopes), reading_of(9 * units, slopes), reading_of(units, 3 * slopes))
    assert of("tiny", larger) == pytest.approx(of("tiny", plain))
    assert of("tiny", steeper) == pytest.approx(9 * of("tiny", plain))
    assert of("senn", larger) == pytest.approx(of("senn", plain))
    assert of("senn", steeper) == pytest.approx(of("senn", plain))
    assert of("gradmax", larger) == pytest.approx(81 * of("gradmax", plain))


def test_residual_streams_and_norms_are_followed():
    torch.manual_seed(0)
    model = build_model("small_resnet", width=8)
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    evidence = collect(model, x, lambda outputs: F.cross_entropy(outputs, y), x[:4])
    added = addition(evidence, "widen", "stem.0", {})
    readings = added.readings(added.directions, False)
    assert len(readings) == 3  # the first block's first convolution, the next block's, and the one on its shortcut
    for name in scores:
        assert torch.isfinite(torch.tensor(scores.get(name)().value(added)))
