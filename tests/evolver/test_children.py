"""Children: what becomes of a run in which they fail, spend its budget, or take its model's place."""

import logging
import math
import threading
import time

import pytest
import torch
from helpers.runs import digests, stop_after
from helpers.small_runs import SAMPLES, SMALL, evolver, net
from torch import nn

import evolve.evolver.run_loop
from evolve.evolver.extrapolation import extrapolate
from evolve.policies import Candidate
from evolve.surgery.parts import new_parts
from evolve.training import evaluate

EPOCH = 3 * SMALL * SAMPLES  # FLOPs of an epoch of the small net
WIDER = Candidate("widen", "0", {"factor": 2})


def climbing(step, children=1, steps=5, **changes):
    """Hill climbing after an optimizer step, to twice the hidden units."""
    return {
        "schedule": {"name": "at", "options": {"steps": [step]}},
        "policy": {"name": "hill_climb", "options": {"children": children, "steps": steps}},
        "operators": [{"name": "widen", "sites": ["0"], "options": {"factor": 2}}],
        **changes,
    }


def surely(run):
    """Lets the mutated child win, whatever it has learned."""
    raised = run.controller.proposer.context

    def context(history):
        found = raised(history)
        child = found.child
        found.child = lambda candidate, steps: math.inf if child(candidate, steps) and not candidate else 0.0
        return found

    run.controller.proposer.context = context
    return run


def test_one_that_has_no_finite_loss_is_given_up(monkeypatch, caplog):
    run = evolver(steps=8, evolution=climbing(3))
    context = run.controller.proposer.context([])
    monkeypatch.setattr(evolve.evolver.run_loop, "evaluate", lambda state, batches: {"loss": math.nan})
    assert context.child(WIDER, 2) is None
    assert "was given up: its val_loss is nan" in caplog.text
    assert run.run().applied == 0


@pytest.mark.parametrize("where", ["evaluate", "train_step"])
def test_where_memory_runs_out_the_run_goes_on(monkeypatch, caplog, where):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    plain = evolver(steps=8)
    plain.run()
    run = evolver(steps=8, evolution=climbing(3))
    monkeypatch.setattr(evolve.evolver.run_loop, where, full)
    assert run.run().finished
    assert "was given up: CUDA out of memory" in caplog.text
    found, expected = digests(run), digests(plain)
    assert found.pop("history") != expected.pop("history") or where == "train_step"  # FLOPs were spent
    assert found == expected


def test_the_best_alone_is_kept():
    run = evolver(steps=8, evolution=climbing(3))
    context, other = run.controller.proposer.context([]), Candidate("widen", "0", {"factor": 3})
    context.child(None, 5)
    losses = [context.child(one, 5) for one in (WIDER, other)]
    candidate, child = context._best
    assert child.score == min(losses) == losses[[WIDER, other].index(candidate)]
    assert context.adopt(other if candidate == WIDER else WIDER) == 0


@pytest.mark.parametrize("probation", [None, {"steps": 4}])
def test_where_they_take_the_rest_of_the_budget_the_run_ends_with_the_model_as_it_is(tmp_path, caplog, probation):
    config = climbing(8, steps=40, probation=probation, repay=1)
    run = surely(evolver(tmp_path / "run", flops=4 * EPOCH, evolution=config))
    with caplog.at_level(logging.INFO, "evolve.evolver.proposer"):
        result = run.run()
    assert "choosing took the rest of the budget" in caplog.text
    assert (result.finished, result.applied, result.refused, run.state.step) == (True, 0, 0, 8)
    assert [(line["epoch"], line["step"], line["progress"] == 1) for line in run.history] == [
        (1, 5, False),
        (1, 8, True),
    ]
    assert run.history[-1]["val_loss"] == evaluate(run.state, run.val_data.epoch(0))["loss"]
    resumed = evolver(tmp_path / "run", flops=4 * EPOCH, evolution=config).restore()
    assert resumed.finished
    assert (resumed.state.step, resumed.history) == (8, run.history)


def test_what_is_repaid_is_reckoned_after_them():
    two = 3 * SMALL * 8 * 10 * 3  # FLOPs of ten steps of the model as it is, and of one with twice the units
    for repay, applied in ((2, 1), (2.6, 0)):  # 2.5 epochs of the larger net are left
        run = surely(evolver(flops=7 * EPOCH + two, evolution=climbing(10, steps=10, repay=repay)))
        run.run()
        assert len(run.lineage.applied) == applied, run.lineage.records
        assert run.lineage.records[0].reason.startswith("step 10; for")


def test_what_they_spent_stays_spent_where_memory_runs_out_after_the_mutation():
    run = surely(evolver(steps=8, evolution=climbing(3)))
    spent = []

    def full(*arguments):
        if run.controller._records and not spent:
            spent.append(run.state.flops)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    run.state.optimizer.register_step_pre_hook(full)
    run.run()
    assert [record.status for record in run.lineage] == ["rolled_back"]
    assert spent == [3 * SMALL * 8 * (3 + 5 + 2 * 5)]
    assert run.state.flops == spent[0] + 3 * SMALL * 8 * 5


def adopted(**changes):
    """A run right after it has taken up a child that was trained for 30 steps."""
    run = surely(evolver(steps=8, ema=0.99, evolution=climbing(3, steps=30, **changes)))
    answers = run.controller.proposer.attempt("asked for", [])
    assert run.controller.proposer.ahead == 30
    return run, answers


def test_the_average_begins_anew_with_one_that_is_adopted():
    run, _ = adopted()
    assert all(torch.equal(run.state.ema.shadow[name], p) for name, p in run.model.named_parameters())


def test_what_is_new_in_one_that_is_adopted_is_not_young():
    run, (answer,) = adopted(care={"rewarm": {"steps": 50}, "moments": "reset"})
    assert new_parts(run.model, {"0.weight": torch.Size([6, 8])}, answer.cuts)
    assert run.state.new_parameters.state_dict()["brought"] == []


def test_they_are_shrunk_before_they_learn(monkeypatch):
    began, train_step = {}, evolve.evolver.run_loop.train_step

    def watched(state, batches):
        began.setdefault(state.model, state.model[2].bias.detach().clone())
        return train_step(state, batches)

    monkeypatch.setattr(evolve.evolver.run_loop, "train_step", watched)
    run, answers = adopted(care={"shrink": {"keep": 0.0}})
    assert [answer.record.operator for answer in answers] == ["widen", "shrink_perturb"]
    (_, as_it_was), (child, shrunk) = began.items()
    assert torch.equal(as_it_was, net()[2].bias)
    assert not torch.isclose(shrunk, as_it_was).any()
    learned = child.state_dict()
    assert all(torch.equal(learned[name], value) for name, value in run.model.state_dict().items())


def test_the_trend_of_a_probation_is_followed_as_far_as_a_child_has_gone():
    found = []
    for steps in (1, 60):
        run = surely(evolver(steps=31, evolution=climbing(25, steps=steps, probation={"steps": 5})))
        run.run()
        (record,) = run.lineage
        curve = [(line["step"], line["val_loss"]) for line in run.history if line["step"] < 25]
        curve.append((25, record.verdict.before))
        assert record.verdict.promised == pytest.approx(extrapolate(curve, 30 + steps, 0.0).value)
        found.append(record.verdict.promised)
    assert found[1] < found[0]


def slowly(monkeypatch, seconds=0.05):
    """Lets each step of a child take so long."""
    train_step = evolve.evolver.run_loop.train_step
    monkeypatch.setattr(
        evolve.evolver.run_loop,
        "train_step",
        lambda state, batches: (time.sleep(seconds), train_step(state, batches))[1],
    )


@pytest.mark.parametrize("step", [8, 10])  # in the middle of an epoch, and at the end of one
@pytest.mark.parametrize("budget", [{"flops": 4 * EPOCH}, {"seconds": 1.0}])
def test_they_take_no_more_than_the_rest_of_the_budget(monkeypatch, budget, step):
    if "seconds" in budget:
        slowly(monkeypatch)
    run = surely(evolver(**budget, evolution=climbing(step, children=4, steps=200, repay=1)))
    result = run.run()
    ((name, amount),) = budget.items()
    spent = getattr(run.state, name)
    assert (result.finished, len(run.lineage), run.state.step) == (True, 0, step)
    assert amount <= spent <= amount + (1.0 if name == "seconds" else 3 * SMALL * 8 * 2)
    assert run.history[-1]["flops"] == run.state.flops
    assert sum(line["seconds"] for line in run.history) == pytest.approx(run.state.seconds, abs=0.05)
    assert result.metrics["progress"] == 1


def test_the_time_that_they_take_is_in_the_checkpoint(monkeypatch, tmp_path):
    slowly(monkeypatch)
    run = stop_after(evolver(tmp_path / "run", steps=8, evolution=climbing(3, steps=10)), 4)
    run.run()
    resumed = evolver(tmp_path / "run", steps=8, evolution=climbing(3, steps=10)).restore()
    assert resumed.state.seconds >= 20 * 0.05
    assert resumed.state.seconds == pytest.approx(run.state.seconds, abs=0.1)


@pytest.mark.parametrize("at", [4, 24])  # of the steps of the model's own copy, and of the second child
def test_a_run_that_is_to_stop_breaks_the_round_off_and_makes_it_when_it_goes_on(monkeypatch, tmp_path, at):
    monkeypatch.setattr(
        evolve.evolver.run_loop, "evaluate", lambda state, batches: {"loss": 1 / state.flops_per_sample}
    )
    config = climbing(3, steps=10, children=2)
    config["operators"] = [{"name": "widen", "sites": ["0"], "options": {"factor": factor}} for factor in (2, 3)]
    whole = evolver(tmp_path / "whole", steps=8, evolution=config)
    whole.run()
    run = evolver(tmp_path / "run", steps=8, evolution=config)
    steps, train_step = [], evolve.evolver.run_loop.train_step

    def signalled(state, batches):
        steps.append(state.step)
        if len(steps) == at:
            run.stop()
        return train_step(state, batches)

    monkeypatch.setattr(evolve.evolver.run_loop, "train_step", signalled)
    run.run()
    assert (len(steps), run.state.step, len(run.lineage)) == (at, 3, 0)
    resumed = evolver(tmp_path / "run", steps=8, evolution=config).restore()
    resumed.run()
    assert resumed.controller.decisions() == whole.controller.decisions()
    found, expected = digests(resumed), digests(whole)
    assert found.pop("history") != expected.pop("history")  # what was broken off is spent
    assert found == expected


class Leaving(nn.Module):
    """Leaves what it made in an attribute; may hold what cannot be copied."""

    def __init__(self, copies):
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.lock = None if copies else threading.Lock()

    def forward(self, x):
        self.features = torch.relu(self.first(x))
        return self.last(self.features)


@pytest.mark.parametrize("copies", [True, False])
def test_of_models_that_keep_what_a_forward_made_or_cannot_be_copied(caplog, copies):
    config = climbing(3) | {"operators": [{"name": "widen", "sites": ["first"]}]}
    run = surely(evolver(steps=8, model=Leaving(copies), evolution=config))
    assert run.run().applied == copies
    assert ("cannot be copied: TypeError" in caplog.text) != copies


class Averaging(nn.Module):
    """Normalises by a mean that is in no `state_dict`."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.last(torch.relu(self.first(x - self.mean)))


def test_buffers_in_no_state_dict_are_taken_over():
    config = climbing(3) | {"operators": [{"name": "widen", "sites": ["first"]}]}
    run = surely(evolver(steps=8, model=Averaging(), evolution=config))
    context = run.controller.proposer.context([])
    run.controller.proposer.context = lambda history: context
    run.controller.proposer.attempt("asked for", [])
    assert run.model.mean.any()
    assert torch.equal(run.model.mean, context._best[1].loop.model.mean)


def test_what_they_spent_before_they_failed_is_counted(monkeypatch):
    run, train_step = evolver(steps=8, evolution=climbing(3)), evolve.evolver.run_loop.train_step

    def failing(state, batches):
        if state.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train_step(state, batches)

    monkeypatch.setattr(evolve.evolver.run_loop, "train_step", failing)
    assert run.controller.proposer.context([]).child(None, 5) is None
    assert run.state.flops == 3 * SMALL * 8 * 2
