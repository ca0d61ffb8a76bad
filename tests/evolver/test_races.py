"""Races of the policy `forecast` within runs: where the run stands behind one, and what becomes of one broken off."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.runs import digests, stop_after
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import evolve.evolver.run_loop
from evolve import EvolutionConfig, Evolver, LrScheduleConfig, OptimizerConfig, TrainingConfig
from evolve.errors import EvolveError
from evolve.evolver.context import RunContext
from evolve.evolver.probation import Probation
from evolve.evolver.proposer import Proposer
from evolve.policies import Race
from evolve.training.events import ForecastMade

BATCHES = 20
PEAK = {"max_lr": 3e-3}


def evolver(
    folder=None, *, at=0.3, factor=2, most=0.3, look=0.35, overwrite=False, optimizer=None, model=None, **changes
):
    """A run with one race of an MLP and a wider one."""
    lr_schedule, probation = changes.pop("lr_schedule", None), changes.pop("probation", None)
    torch.manual_seed(0)
    x = torch.randn(BATCHES * 8, 8)
    y = (x[:, :3].prod(dim=1) > 0).long()
    model = model or nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2))
    evolution = {
        "preset": "auto",
        "schedule": {"name": "at", "options": {"progress": [at]}},
        "policy": {"name": "forecast", "options": {"between": [0, 1], "after": 40, "look": look, "most": most}},
        "operators": [{"name": "widen", "sites": ["*"], "options": {"factor": factor}}],
        "probation": probation,
    }
    if optimizer is not None:
        optimizer, lr_schedule = optimizer(model)
    run = Evolver(
        model,
        (x, y),
        (x[:40], y[:40]),
        optimizer=optimizer or OptimizerConfig(name="AdamW", options={"lr": 3e-3}),
        lr_schedule=lr_schedule,
        training=TrainingConfig.model_validate({"epochs": None, "device": "cpu", **changes}),
        evolution=EvolutionConfig.model_validate(evolution),
        output=None if folder is None else evolve.OutputConfig(dir=str(folder), overwrite=overwrite),
        batch_size=8,
        progress=False,
    )
    run.told = []
    run.events.listen(lambda event: run.told.append(event) if "grows" in event.facts else None, ForecastMade)
    return run


def decided(monkeypatch, grows):
    """Lets the larger model learn faster in each race, or slower."""
    race = RunContext.race

    def raced(context, candidate, steps, most):
        found = race(context, candidate, steps, most)
        if found is None:
            return None
        logs = [math.log1p((i + 1) / context.step) for i in range(len(found.own.losses))]
        own, child = ([3 - slope * x for x in logs] for slope in (0.3, 0.5 if grows else 0.1))
        return Race(
            dataclasses.replace(found.own, losses=own, held_out=1.0),
            dataclasses.replace(found.child, losses=child, held_out=0.9 if grows else 1.1),
        )

    monkeypatch.setattr(RunContext, "race", raced)


def stopped(run, monkeypatch, glance):
    """Stops a run as its so-many-th look at held-out data in a race begins."""
    looks, evaluated = [], evolve.evolver.run_loop.evaluated

    def looked(state, batches):
        looks.append(state)
        if len(looks) == glance:
            run.stop()
        return evaluated(state, batches)

    with monkeypatch.context() as patched:
        patched.setattr(evolve.evolver.run_loop, "evaluated", looked)
        run.run()
    return run


@pytest.mark.parametrize("accumulate", [1, 3, 7])
def test_epochs_end_where_they_would_have_without_a_race(accumulate):
    steps = math.ceil(BATCHES / accumulate)
    run = evolver(epochs=80, accumulate=accumulate)
    run.run()
    (told,) = run.told
    assert told.facts["steps"] % steps  # from one epoch into the middle of another
    assert run.state.step == 80 * steps
    assert all(line["step"] == line["epoch"] * steps for line in run.history)
    assert (run.state.epoch, run.state.batch) == (80, 0)


def test_the_steps_of_a_race_do_not_reach_from_one_epoch_into_the_next(monkeypatch):
    sizes, train_step = [], evolve.evolver.run_loop.train_step

    def counted(state, batches):
        sizes.append(len(batches))
        return train_step(state, batches)

    monkeypatch.setattr(evolve.evolver.run_loop, "train_step", counted)
    evolver(epochs=80, accumulate=7).run()
    assert set(sizes) == {7, 6}  # of 20 batches
    assert sizes[:3] == [7, 7, 6]


@pytest.mark.parametrize("budget", [{"steps": 300}, {"epochs": 15}])
def test_a_race_that_would_be_the_rest_of_the_run_is_not_held(budget):
    run = evolver(at=0.9, most=0.9, look=1.0, **budget)
    run.run()
    assert run.told == []
    assert run.state.step == 300


def one_cycle(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return optimizer, OneCycleLR(optimizer, total_steps=301, **PEAK)


@pytest.mark.parametrize("grows", [True, False])
def test_a_schedule_of_learning_rates_follows_the_steps_of_a_race(monkeypatch, grows):
    rates, train_step = {}, evolve.evolver.evolver.train_step

    def noted(state, *rest):
        rates[state.step] = state.lr
        return train_step(state, *rest)

    monkeypatch.setattr(evolve.evolver.evolver, "train_step", noted)
    evolver(steps=300, at=0.999, optimizer=one_cycle).run()
    expected = dict(rates)
    assert len(expected) == 300
    decided(monkeypatch, grows)
    for given in ({"optimizer": one_cycle}, {"lr_schedule": LrScheduleConfig(name="OneCycleLR", options=PEAK)}):
        rates.clear()
        run = evolver(steps=300, **given)
        run.run()
        assert [*rates] == [*range(90), *range(90 + run.told[0].facts["steps"], 300)]
        if "optimizer" in given:
            assert all(rate == expected[step] for step, rate in rates.items())
        else:  # over 300 steps, not 301
            assert all(rate == pytest.approx(expected[step], abs=3e-5) for step, rate in rates.items())


def test_a_schedule_that_moves_with_epochs_follows_too(monkeypatch):
    decided(monkeypatch, grows=False)
    step = LrScheduleConfig(name="StepLR", interval="epoch", options={"step_size": 1, "gamma": 0.9})
    run = evolver(steps=300, lr_schedule=step)
    run.run()
    behind = 90 + run.told[0].facts["steps"]
    line = next(line for line in run.history if line["step"] > behind)
    assert behind // BATCHES > 90 // BATCHES
    assert line["lr"] == pytest.approx(3e-3 * 0.9 ** (behind // BATCHES))


def test_a_run_that_is_stopped_as_a_race_is_decided_keeps_the_decision(monkeypatch, tmp_path):
    decided(monkeypatch, grows=False)
    given = {"steps": 300, "ema": 0.9}
    whole = evolver(tmp_path / "whole", **given)
    whole.run()
    (told,) = whole.told
    assert not told.facts["grows"]
    run = stopped(evolver(tmp_path / "run", **given), monkeypatch, 2)
    assert run.state.step == told.facts["step"] + told.facts["steps"]
    resumed = evolver(tmp_path / "run", **given).restore()
    resumed.run()
    assert (run.told[0].facts, resumed.told) == (told.facts, [])
    assert digests(resumed) == digests(whole)


def test_what_was_broken_off_is_not_told(monkeypatch, tmp_path):
    decided(monkeypatch, grows=True)
    whole = evolver(steps=300)
    whole.run()
    assert whole.told[0].facts["grows"]
    run = stopped(evolver(tmp_path, steps=300), monkeypatch, 2)
    assert (run.told, run.state.step, (tmp_path / "forecasts.jsonl").exists()) == ([], 90, False)
    resumed = evolver(tmp_path, steps=300).restore()
    resumed.run()
    assert [one.facts for one in resumed.told] == [whole.told[0].facts]


def test_forecasts_are_those_of_the_run_in_the_folder(tmp_path):
    file = tmp_path / "forecasts.jsonl"
    run = evolver(tmp_path, steps=300)
    run.run()
    line, came = file.read_text().splitlines()
    file.write_text("\n".join((line, came, json.dumps(json.loads(line) | {"step": 301}), line[:20])))
    evolver(tmp_path, steps=400).restore().run()  # killed behind its checkpoint, as it wrote
    assert file.read_text().splitlines() == [line, came]
    evolver(tmp_path, steps=60, overwrite=True).run()
    assert not file.exists()
    file.symlink_to(tmp_path.parent / "elsewhere")
    with pytest.raises(EvolveError, match=r"forecasts\.jsonl' is a link"):
        evolver(tmp_path, steps=60, overwrite=True).run()


def test_what_was_forecast_is_void_where_the_budget_changes(tmp_path):
    stop_after(evolver(tmp_path, steps=300), 200).run()
    same, longer = evolver(tmp_path, steps=300).restore(), evolver(tmp_path, steps=400).restore()
    expected = [run.controller.proposer.policy.state()["expected"] for run in (same, longer)]
    assert expected[0]
    assert expected[1] == []


def test_a_growth_that_is_refused_after_its_race_leaves_the_run_behind_its_own_copy(monkeypatch):
    decided(monkeypatch, grows=True)
    mutate = Proposer.mutate

    def refused(proposer, loop, chosen, seed, note=None):
        return mutate(
            proposer, loop, chosen if note is None else dataclasses.replace(chosen, site="nowhere"), seed, note
        )

    monkeypatch.setattr(Proposer, "mutate", refused)
    run = evolver(steps=300)
    run.run()
    (record,), policy = run.lineage.records, run.controller.proposer.policy.state()
    assert (record.success, run.told[0].facts["grows"]) == (False, True)
    assert (policy["expected"], policy["slope"]) == ([], [])
    assert run.model[0].out_features == 4
    assert run.state.step == 300
    assert sum(count for count, _, _ in run.controller.proposer.curve.points(1)) == 300 - run.told[0].facts["steps"]


def test_the_curve_of_a_growth_that_is_taken_back_goes_with_it(monkeypatch):
    decided(monkeypatch, grows=True)
    monkeypatch.setattr(Probation, "verdict", lambda self: self.condemn() if self._loop.step == 160 else None)
    run = evolver(steps=300, probation={"steps": 100})
    run.run()
    assert [record.success for record in run.lineage.records] == [False]
    assert run.state.step == 300
    assert sum(count for count, _, _ in run.controller.proposer.curve.points(1)) == 300


def test_losses_that_are_not_finite_are_not_looked_at():
    proposer = evolver(steps=300).controller.proposer
    for loss in (math.nan, math.inf):
        proposer.watch(loss)
    assert proposer.curve.state_dict() == {}


class Remembering(nn.Module):
    """Keeps a mean for each step that it was trained, and from its 100th step on a buffer more."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 2)
        self.register_buffer("means", torch.zeros(0))

    def forward(self, x):
        if self.training:
            self.means = torch.cat([self.means, x.detach().mean().view(1)])
            if len(self.means) == 100:
                self.register_buffer("late", self.means.sum(), persistent=False)
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("grows", [True, False])
def test_buffers_that_a_forward_makes_are_taken_over(monkeypatch, grows):
    decided(monkeypatch, grows)
    run = evolver(steps=300, model=Remembering())
    run.run()
    assert run.told[0].facts["grows"] == grows
    assert run.model.first.out_features == (8 if grows else 4)
    assert len(run.model.means) >= 300  # those of the preflight and of mutations aside, one for each step
    assert torch.equal(run.model.late, run.model.means[:100].sum())
    assert [*run.model.state_dict()].count("late") == 0
