"""`evolution.repay`: a growth is made only where the budget left pays for enough epochs of the larger model."""

import pytest
from helpers.small_runs import SAMPLES, SMALL, evolver

from evolve.budget import Budget, Spent
from evolve.evolver.proposer import Proposer
from evolve.lineage import Lineage

EPOCH = 3 * SMALL * SAMPLES  # FLOPs of an epoch of the small net


def growing(repay, progress=0.5):
    """Three times the hidden units, or else twice."""
    return {
        "schedule": {"name": "at", "options": {"progress": [progress]}},
        "operators": [{"name": "widen", "sites": ["0"], "options": {"factor": factor}} for factor in (3, 2)],
        "attempts": 2,
        "repay": repay,
    }


@pytest.mark.parametrize(("unit", "left"), [("epochs", 7.5), ("steps", 7.5), ("seconds", 7.5), ("flops", 6.0)])
def test_epochs_left(unit, left):
    amounts = {"epochs": 10.0, "steps": 50.0, "seconds": 40.0, "flops": 70.0}
    spent = Spent(epochs=2.5, steps=12.5, seconds=10.0, flops=10)
    assert Budget(unit, amounts[unit]).epochs_left(spent, epoch_flops=10.0) == left


@pytest.mark.parametrize(
    ("repay", "grown"),
    [(None, 3), (4 / 3, 3), (1.4, 2), (2, 2), (2.1, None)],  # four epochs are left at the half of eight
)
def test_the_largest_that_is_repaid_is_taken(repay, grown):
    run = evolver(evolution=growing(repay), flops=8 * EPOCH)
    run.run()
    applied = [record.options["factor"] for record in run.lineage.applied]
    assert applied == ([grown] if grown else [])
    for record in run.lineage.records[: len(run.lineage) - len(applied)]:
        assert record.status == "rejected"
        assert f"The limit of {int(SMALL * 4 / repay):,}" in record.message
        assert f"for {repay:g} more epochs the budget left pays for no more than" in record.reason


@pytest.mark.parametrize(("repay", "applied"), [(4, 1), (4.1, 0)])
def test_of_a_budget_of_epochs_only_what_is_left_counts(repay, applied):
    run = evolver(evolution=growing(repay), epochs=8)
    assert run.run().applied == applied
    if applied:
        assert run.lineage.applied[0].options["factor"] == 3
        assert run.lineage.applied[0].reason == "0.5 of the budget"
    else:
        assert f"The limit of {SMALL:,} FLOPs would be passed" in run.lineage.records[0].message


def test_a_tighter_limit_stays():
    run = evolver(evolution={**growing(1), "limits": {"flops": 2 * SMALL}}, flops=8 * EPOCH)
    run.run()
    assert [record.options["factor"] for record in run.lineage.applied] == [2]
    assert run.lineage.records[0].reason == "0.5 of the budget"


def test_where_flops_cannot_be_counted_nothing_is_refused_for_them_and_it_is_told(caplog):
    run = evolver(evolution=growing(100), epochs=8)
    assert "evolution.repay" not in caplog.text
    run.state.flops_per_sample = 0
    Proposer(run.evolution, run.controller.loop, Lineage(), run.controller.new_parameters, lambda: False)
    assert "evolution.repay says nothing about this model" in caplog.text
    assert run.run().applied == 1


@pytest.mark.parametrize("budget", [{"steps": 40}, {"seconds": 60.0}, {"flops": 8 * EPOCH}, {"epochs": 8}])
def test_before_the_first_step_nothing_is_known(budget):
    assert evolver(evolution=growing(100), **budget).controller.proposer.attempt("asked for", [])[-1]


def test_seconds_go_with_flops():
    run = evolver(seconds=100.0)
    state = run.state
    state.step, state.seconds = 10, 20.0  # two epochs of five steps: ten seconds each, eight epochs are left
    assert state.affordable(4) == 2 * SMALL
    assert state.affordable(16) == SMALL  # never less than the model has
