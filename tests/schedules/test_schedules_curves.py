"""Schedules that look at curves: known answers on made ones, sane ones in real runs."""

import json
import math
import random

import pytest
import torch
from helpers.images import data, net

from evolve import EvolutionConfig, Evolver, OptimizerConfig, TrainingConfig
from evolve.errors import EvolveError
from evolve.schedules import Clock, ScheduleConfig
from evolve.schedules.gain import Approach, fit_approaches

EPOCHS = 100


def exponential(epoch):
    return 0.5 + 1.5 * math.exp(-epoch / 8)


def power(epoch):
    return 0.4 + 1.6 * epoch**-0.7


def due(name, options, curve, *, noise=0.0, seed=0, epochs=EPOCHS, train=lambda epoch: 1.0, grows=None, costs=()):
    """The epochs at which a schedule is due on a curve, its state saved and loaded after each.

    `grows` makes each due mutation real: it returns the curve that follows, and the steps become twice as dear. `costs`
    are the figures of each epoch that stand for its own.
    """
    generator = random.Random(seed)
    schedule = ScheduleConfig(name=name, options=options).build()
    found, history, params, flops = [], [], 100, 0
    for epoch in range(1, epochs + 1):
        flops += 10 * params
        value = curve(epoch) * (1 + noise * generator.gauss(0, 1))
        history.append(
            {"epoch": epoch, "step": 10 * epoch, "val_loss": value, "val_accuracy": value, "params": params}
            | {"train_loss": train(epoch), "train_accuracy": train(epoch), "flops": flops, "progress": epoch / epochs}
            | (costs[epoch] if costs else {})
        )
        assert schedule.due(Clock(epoch, 10 * epoch - 1, False, history, epoch / epochs)) is None
        if epoch < epochs and schedule.due(Clock(epoch, 10 * epoch, True, history, epoch / epochs)):
            found.append(epoch)
            if grows:
                params, curve = 2 * params, grows(epoch, curve)
        state = json.loads(json.dumps(schedule.state()))
        schedule = ScheduleConfig(name=name, options=options).build()
        schedule.load_state(state)
    return found


def first(*args, **settings):
    return (due(*args, **settings) or [EPOCHS])[0]


def test_plateau_of_a_smooth_curve():
    # In three epochs the loss falls by less than 1 % of itself from epoch 37 on; patience counts three from there.
    options = {"smoothing": 0.0, "patience": 3}
    last = max(e for e in range(1, EPOCHS) if exponential(e) < 0.99 * exponential(e - 3))
    assert last == 39
    assert first("plateau", options, exponential) in (last, last + 1)
    assert first("plateau", {}, exponential) == 41  # smoothing lags by an epoch


def test_smoothing_saves_from_false_plateaus():
    """With 3 % noise: how often a curve is called flat that falls by more than 3 % in the next three epochs."""

    def share(smoothing):
        epochs = [first("plateau", {"smoothing": smoothing}, exponential, noise=0.03, seed=s) for s in range(100)]
        return sum(exponential(e) - exponential(e + 3) > 0.03 * exponential(e) for e in epochs) / 100

    assert share(0.0) > 0.3
    assert share(0.5) < 0.08


@pytest.mark.parametrize(
    ("metric", "train", "val", "gap"),
    [("accuracy", 0.90, 0.90, 0.0), ("accuracy", 0.95, 0.89, 6.0), ("loss", 0.9, 1.0, 10.0), ("loss", 1.0, 0.8, -25.0)],
)
def test_the_gap_says_how_long_to_wait(metric, train, val, gap):
    options = {"metric": metric, "longest": 0.4, "middle": 5.0, "width": 2.0}
    interval = 0.4 / (1 + math.exp((5.0 - gap) / 2.0))
    found = due("gap", options, lambda epoch: val, train=lambda epoch: train)
    step = math.ceil(round(interval * EPOCHS, 9))
    assert found == list(range(step, EPOCHS, step))
    stopped = due("gap", {**options, "stop": 0.5}, lambda epoch: val, train=lambda epoch: train)
    assert stopped == [epoch for epoch in found if epoch <= 50]


def test_the_gap_survives_extremes():
    assert due("gap", {"width": 1e-3}, lambda epoch: 1.0, train=lambda epoch: 0.0) == list(range(1, EPOCHS))
    assert due("gap", {"width": 1e-3}, lambda epoch: 0.0, train=lambda epoch: 1.0) == [25, 50, 75]


def test_gain_is_due_where_the_larger_model_becomes_faster():
    # Exponential: excess <= promise * end / (cost - 1) = 0.05, so 8 ln 30 = 27.2 epochs.
    assert first("gain", {}, exponential) in (27, 28)
    # Three times the FLOPs: 0.025, 8 ln 60 = 32.8.
    assert first("gain", {"cost": 3.0}, exponential) in (33, 34)
    # Power: k = 2 ** (.7 / 1.7); excess <= .04 / (k - 1), so 39.9 epochs.
    assert first("gain", {}, power) in (40, 41)
    assert first("gain", {}, lambda epoch: 0.7) == 6  # flat as far as is known
    assert due("gain", {}, lambda epoch: 2.0 - 0.015 * epoch) == []  # as fast as ever


def test_gain_is_not_due_where_the_rest_of_the_budget_does_not_repay_it():
    # 30 epochs of the exponential: at 28 the larger one would make .536 of .545 in two epochs' worth, 1.5 % need more.
    assert due("gain", {"worth": 0.02}, exponential, epochs=32) == []
    assert due("gain", {"worth": 0.02}, exponential, epochs=60) != []
    now = Approach(0.5, 0.05, 8.0)
    larger = now.promised(0.1, 2.0)
    assert (larger.end, larger.excess, larger.time) == pytest.approx((0.45, 0.1, 16.0))
    assert larger.rate == pytest.approx(now.rate)
    assert larger.after(1e9) == pytest.approx(0.45)
    assert now.after(8) == pytest.approx(0.5 + 0.05 / math.e)


def test_gain_goes_by_seconds_where_these_are_compute():
    # A second an epoch, the FLOPs of which say nothing; then epochs of 9 s, in which the loss falls ever slower.
    even = [{"seconds": 1.0, "flops": 7 * e**2} for e in range(EPOCHS + 1)]
    assert first("gain", {"per": "seconds"}, exponential, costs=even) in (27, 28)
    assert first("gain", {}, exponential, costs=even) not in (27, 28)
    slow = [{"seconds": 1.0 + 8.0 * (e > 20), "flops": e} for e in range(EPOCHS + 1)]
    assert first("gain", {"per": "seconds"}, exponential, costs=slow) < 27
    assert first("gain", {}, exponential, costs=slow) in (27, 28)
    no_flops = [{"seconds": 1.0, "flops": 0}] * (EPOCHS + 1)
    assert first("gain", {"per": "seconds"}, exponential, costs=no_flops) in (27, 28)


@pytest.mark.parametrize(("curve", "optimum", "early"), [(exponential, 27.2, 5), (power, 39.9, 22)])
def test_gain_bears_noise(curve, optimum, early):
    """One percent of noise: the exponential is met; a power is thought to be nearer to its end than it is."""
    epochs = sorted(first("gain", {}, curve, noise=0.01, seed=seed) for seed in range(12))
    assert epochs[1] > optimum - early
    assert epochs[-2] < optimum + 10


def test_gain_stops_where_growing_brought_nothing():
    def same_end(epoch, curve):
        return curve  # the larger model goes on as the small one: no gain, for twice the FLOPs

    def better(epoch, curve):
        start, end = curve(epoch), 0.8 * (curve(10**6))
        return lambda later: end + (start - end) * math.exp(-(later - epoch) / 8)

    useless = due("gain", {}, exponential, epochs=120, grows=same_end)
    useful = due("gain", {}, exponential, epochs=120, grows=better)
    assert useless[0] == useful[0]
    # .1 is promised, then half as much after each growth that brought nothing, until it is not worth .005.
    assert len(useless) <= 5
    assert useful[-1] > useless[-1] + 30
    assert len(useful) > 8


def test_a_fit_finds_what_made_the_curve():
    compute = [100.0 * k for k in range(1, 17)]
    for made in (Approach(0.5, 0.2, 500.0), Approach(0.3, 0.1, 1600.0, 0.5)):
        losses = [made.after(c - 1600.0) for c in compute]
        found = fit_approaches(compute, losses)
        assert sum(weight for weight, _ in found) == pytest.approx(1)
        best = max(found, key=lambda pair: pair[0])[1]
        assert math.isinf(best.power) == math.isinf(made.power)
        assert (best.end, best.rate) == pytest.approx((made.end, made.rate), rel=0.05)  # what is tried lies 5 % apart


def test_gain_needs_flops():
    line = {"val_loss": 1.0, "params": 1, "flops": 0}
    history = [{**line, "step": epoch, "progress": epoch / 9} for epoch in range(1, 8)]
    with pytest.raises(EvolveError, match="needs a model whose FLOPs can be counted"):
        ScheduleConfig(name="gain").build().due(Clock(7, 7, True, history, 7 / 9))
    with pytest.raises(EvolveError, match="Schedule 'gap' watches 'train_accuracy'"):
        ScheduleConfig(name="gap").build().due(Clock(7, 7, True, history, 7 / 9))


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "plateau", "options": {"metric": "train_loss", "patience": 2}},
        {"name": "gap", "options": {"metric": "loss", "longest": 0.2, "middle": -100}},
        {"name": "gain", "options": {"metric": "train_loss"}},
    ],
    ids=lambda schedule: schedule["name"],
)
def test_in_a_real_run(schedule):
    torch.manual_seed(0)
    evolution = {
        "schedule": schedule,
        "operators": [{"name": "widen", "options": {"factor": 2}}],
        "limits": {"params": 5000},
        "attempts": 1,
    }
    run = Evolver(
        net(), data(96), data(32, 1), batch_size=16, progress=False,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.02}),
        training=TrainingConfig(epochs=40, device="cpu"),
        evolution=EvolutionConfig.model_validate(evolution),
    )  # fmt: skip
    result = run.run()
    assert result.finished
    assert 1 <= result.applied <= 8
    assert all(record.epoch >= 2 and record.reason for record in run.lineage)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gap", {"metric": "loss", "longest": 1.0, "middle": -100.0}),
        ("gain", {}),
        ("plateau", {"patience": 30, "smoothing": 0.5}),
    ],
)
def test_one_loss_that_is_not_finite_sets_off_no_alarm(name, options, value):
    """And the schedule goes on as if that epoch had not been looked at."""
    schedule, history = ScheduleConfig(name=name, options=options).build(), []
    for epoch in range(1, 13):
        loss = 1 / epoch if epoch != 5 else value
        line = {"epoch": epoch, "step": 10 * epoch, "val_loss": loss, "train_loss": 1 / epoch, "params": 10}
        history.append({**line, "flops": 100 * epoch, "progress": epoch / 24})
        assert schedule.due(Clock(epoch, 10 * epoch, True, history, epoch / 24)) is None
    assert math.isfinite(sum(v for v in str_numbers(schedule.state())))


def str_numbers(state):
    """The numbers in a state."""
    for value in state.values():
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, float | int))
