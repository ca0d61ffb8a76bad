"""Learning rates step by step: warm-up in front of a schedule, `wsd`, and what is refused."""

import math

import pytest
import torch
from helpers.runs import digests, make, stop_after
from helpers.yaml_files import edit
from torch import nn

from evolve import Evolver, LrScheduleConfig, TrainingConfig, load_config
from evolve.config import ConfigError
from evolve.errors import CheckpointError, EvolveError
from evolve.tasks import build_task
from evolve.training import advance_schedule, create_state, place_model, train_step
from evolve.training.events import RunFinished, StepMade
from evolve.training.lr_curves import WarmupLR


def rates(schedule, steps=12, lr=1.0, epoch_steps=4, groups=None, **budget):
    """The learning rates that the optimizer steps of a run are made with, by group if `groups` are given."""
    model = nn.Linear(2, 1)
    config = TrainingConfig.model_validate({"device": "cpu", "loss": "mse_loss", **(budget or {"steps": steps})})
    place_model(model, config)
    each = [{"params": [p], "lr": rate} for p, rate in zip(model.parameters(), groups or [lr, lr], strict=True)]
    optimizer = torch.optim.SGD(each, momentum=0.9)
    state = create_state(
        model, optimizer, config, build_task(None)[0], lr_schedule=LrScheduleConfig.model_validate(schedule),
        epoch_steps=epoch_steps, epoch_samples=epoch_steps, flops_per_sample=10,
    )  # fmt: skip
    seen, data = [], (torch.zeros(1, 2), torch.zeros(1, 1))
    while state.progress < 1:
        seen.append([group["lr"] for group in optimizer.param_groups])
        train_step(state, [data])
        if state.step % epoch_steps == 0:
            advance_schedule(state, "epoch", {"loss": 1.0})
    return seen if groups else [first for first, _ in seen]


def of_torch(make_scheduler, steps, lr=1.0):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_a_warmup_rises_to_where_the_schedule_begins_which_has_the_rest():
    cosine = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=9), 9)
    for warmup in (3, 0.25):
        seen = rates({"name": "CosineAnnealingLR", "warmup": warmup})
        assert seen == pytest.approx([0.25, 0.5, 0.75, *cosine])


@pytest.mark.parametrize(
    ("schedule", "rest"),
    [
        ({"name": "OneCycleLR", "options": {"max_lr": 2.0}},
         lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 2.0, total_steps=8)),
        ({"name": "ExponentialLR", "options": {"gamma": 0.5}},
         lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)),
        ({"name": "PolynomialLR"}, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=8)),
        ({"name": "StepLR", "options": {"step_size": 3}}, lambda o: torch.optim.lr_scheduler.StepLR(o, 3)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_any_schedule_may_follow(schedule, rest):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    expected = []
    scheduler = rest(optimizer)
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 8:
            scheduler.step()
    seen = rates({**schedule, "warmup": 4})
    assert seen[:4] == pytest.approx([expected[0] * k / 5 for k in (1, 2, 3, 4)])
    assert seen[4:] == pytest.approx(expected)


def test_a_warmup_counts_steps_in_front_of_a_schedule_that_moves_by_epochs():
    seen = rates({"name": "StepLR", "interval": "epoch", "warmup": 2, "options": {"step_size": 1}}, steps=14)
    assert seen == pytest.approx([1 / 3, 2 / 3, *[1] * 6, *[0.1] * 4, *[0.01] * 2])
    plateau = {"name": "ReduceLROnPlateau", "interval": "epoch", "options": {"patience": 0, "threshold": 100.0}}
    seen = rates({**plateau, "warmup": 3}, steps=16)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, *[0.1] * 4, *[0.01] * 4, *[0.001] * 4])


def test_groups_keep_their_proportion():
    seen = rates({"name": "wsd", "warmup": 3, "options": {"decay": 3, "shape": "linear"}}, groups=[1.0, 0.1])
    assert all(second == pytest.approx(first / 10) for first, second in seen)
    assert seen[5] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("options", "falls"),
    [
        ({"decay": 4, "shape": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"decay": 0.5, "shape": "linear", "end": 0.5}, [1, 0.875, 0.75, 0.625]),
        ({"decay": 4}, [1, *(1 - math.sqrt(x / 4) for x in (1, 2, 3))]),
        ({"decay": 4, "shape": "cosine"}, [(1 + math.cos(math.pi * x / 4)) / 2 for x in range(4)]),
    ],
)
def test_wsd_rises_holds_and_falls(options, falls):
    seen = rates({"name": "wsd", "warmup": 4, "options": options})
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, *falls])


@pytest.mark.parametrize("budget", [{"epochs": 3}, {"flops": 12 * 30.0}])
def test_wsd_is_laid_over_any_budget(budget):
    """A step has 3 times the 10 FLOPs of a forward pass of its one sample."""
    seen = rates({"name": "wsd", "warmup": 0.25, "options": {"decay": 3, "shape": "linear"}}, **budget)
    assert seen == pytest.approx([0.25, 0.5, 0.75, *[1] * 7, 2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("name", "step"), [("wsd", 2), ("CosineAnnealingLR", 5), ("CosineAnnealingLR", 11), ("OneCycleLR", 2)]
)
def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path, name, step):
    options = {"max_lr": 0.1} if name == "OneCycleLR" else {}
    changes = {"lr_schedule": LrScheduleConfig(name=name, warmup=4, options=options)}
    whole = make(tmp_path / "whole", **changes)
    whole.run()
    stop_after(make(tmp_path / "run", **changes), step).run()
    again = make(tmp_path / "run", **changes).restore()
    assert isinstance(again.state.scheduler, WarmupLR)
    again.run()
    assert digests(again) == digests(whole)


def test_another_schedule_behind_the_warmup_is_refused(tmp_path):
    wsd = {"lr_schedule": LrScheduleConfig(name="wsd", warmup=4)}
    stop_after(make(tmp_path / "run", **wsd), 2).run()
    other = make(tmp_path / "run", lr_schedule=LrScheduleConfig(name="CosineAnnealingLR", warmup=4))
    with pytest.raises(CheckpointError, match="in front of StableDecayLR, this one is in front of CosineAnnealingLR"):
        other.restore()


@pytest.mark.parametrize(
    ("schedule", "key", "message"),
    [
        ("{name: CosineAnnealingLR, options: {T_max: -3}}", "options.T_max", "at least 1; found -3"),
        ("{name: StepLR, options: {step_size: 0}}", "options.step_size", "at least 1; found 0"),
        ("{name: ExponentialLR, options: {gamma: -0.5}}", "options.gamma", "at least 0; found -0.5"),
        ("{name: CosineAnnealingWarmRestarts, options: {T_0: 5, T_mult: 0}}", "options.T_mult", "at least 1"),
        ("{name: LinearLR, options: {start_factor: 2.0}}", "options.start_factor", "is refused"),
        ("{name: OneCycleLR, options: {max_lr: 0.1, pct_start: 3.0}}", "options.pct_start", "is refused"),
        ("{name: wsd, options: {shape: round}}", "options.shape", "expected linear | cosine | sqrt"),
        ("{name: wsd, options: {decay: 0}}", "options.decay", "a part between 0 and 1"),
        ("{name: wsd, options: {end: 2.0}}", "options.end", "between 0 and 1; found 2.0"),
        ("{name: wsd, warmup: 0}", "lr_schedule.warmup", "at least 1"),
        ("{name: wsd, warmup: 1.5}", "lr_schedule.warmup", ""),
        ("{name: wsd, warmup: true}", "lr_schedule.warmup", ""),
    ],
)
def test_nonsense_is_a_fault_with_its_key(tmp_path, schedule, key, message):
    file = tmp_path / "run.yaml"
    old = "lr_schedule: {name: OneCycleLR, interval: step, options: {max_lr: 0.1}}"
    file.write_text(edit(old, f"lr_schedule: {schedule}"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert key in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "ReduceLROnPlateau", "interval": "epoch", "options": {"min_lr": [0.0, 0.01]}},
        {"name": "CyclicLR", "options": {"base_lr": [0.1, 0.01], "max_lr": [1.0, 0.1]}},
        {"name": "MultiStepLR", "options": {"milestones": [3, 6, 9]}},
    ],
    ids=lambda schedule: schedule["name"],
)
def test_lists_for_each_group_are_no_fault(schedule):
    assert len(rates(schedule, groups=[1.0, 0.1])) == 12


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [("val_accuracy", [1, 1, 1, 0.1, 0.1, 0.01]), ("val_loss", [1, 1, 0.1, 0.1, 0.1, 0.1])],
)
@pytest.mark.parametrize("made", [False, True])
def test_a_schedule_that_looks_at_the_run_follows_its_monitor(monkeypatch, monitor, expected, made):
    found = iter(zip([1.0, 2.0, 0.9, 0.8, 0.7], [0.25, 0.5, 0.5, 0.75, 0.25], strict=True))
    evaluations = (dict(zip(("loss", "accuracy"), each, strict=True)) for each in found)
    monkeypatch.setattr("evolve.training.metrics.evaluate", lambda state, batches: next(evaluations))
    data, model = (torch.randn(8, 2), torch.ones(8).long()), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = LrScheduleConfig(name="ReduceLROnPlateau", interval="epoch", options={"patience": 0})
    if made:
        mode = "min" if monitor == "val_loss" else "max"
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, patience=0)
    seen = []
    evolver = Evolver(
        model, data, data, optimizer=optimizer, lr_schedule=schedule, batch_size=8, progress=False,
        training=TrainingConfig(epochs=5, device="cpu", monitor={"metric": monitor}),
        callbacks=[lambda event: seen.append(evolver.state.lr) if isinstance(event, StepMade | RunFinished) else None],
    )  # fmt: skip
    evolver.run()
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("made", [False, True])
def test_a_schedule_that_takes_worse_for_better_is_refused(made):
    options = {"patience": 0, "mode": "max"}
    schedule = LrScheduleConfig(name="ReduceLROnPlateau", interval="epoch", options=options)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if made:
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    data = torch.randn(8, 2), torch.ones(8).long()
    with pytest.raises(EvolveError, match=r"monitor, val_loss, of which mode: min is better, and is set to mode: max"):
        Evolver(model, data, data, optimizer=optimizer, lr_schedule=schedule, progress=False)


def test_what_does_not_fit_the_run_is_told_before_the_first_step():
    with pytest.raises(EvolveError, match=r"lr_schedule\.warmup: 20 steps of warm-up leave nothing of a run of 12"):
        rates({"name": "wsd", "warmup": 20})
    with pytest.raises(EvolveError, match="OneCycleLR sets one learning rate for all parameter groups"):
        rates({"name": "OneCycleLR", "options": {"max_lr": 1.0}}, groups=[1.0, 0.1])
    seen = rates({"name": "OneCycleLR", "options": {"max_lr": [1.0, 0.1]}}, groups=[1.0, 0.1])
    assert max(first for first, _ in seen) == pytest.approx(1.0, rel=0.01)
    assert max(second for _, second in seen) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    ("interval", "warmup", "options", "until"),
    [
        ("step", None, {"decay": 0.2}, 0.8),
        ("step", 100, {"decay": 100}, 0.9),
        ("epoch", 0.1, {"decay": 0.5}, 0.6),  # the schedule is nine epochs long, of which five are held
        ("step", None, {"total_steps": 500}, 0.4),
    ],
)
def test_it_is_known_until_when_the_learning_rate_is_held(interval, warmup, options, until):
    config = LrScheduleConfig(name="wsd", interval=interval, warmup=warmup, options=options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = config.build(optimizer, 1000, 100)
    assert config.held_until(scheduler, 1000, 100) == pytest.approx(until)
    constant = LrScheduleConfig(name="CosineAnnealingLR")
    assert constant.held_until(constant.build(optimizer, 1000, 100), 1000, 100) == 1
