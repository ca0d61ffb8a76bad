"""The schedule `settled`: when it looks, what it counts as settled, and a run that prunes by it."""

import pytest
import torch
from helpers.runs import digests, make, stop_after
from torch import nn

import evolve
from evolve import EvolutionConfig
from evolve.config import OptionFaults
from evolve.errors import EvolveError
from evolve.schedules import Clock, ScheduleConfig


def asked(leaving, epochs=12, **options):
    """The epochs at which a mutation is due, and the reasons; `leaving` says what would go at the end of each."""
    schedule = ScheduleConfig(name="settled", options=options).build()
    found = {}
    for epoch in range(1, epochs + 1):
        clock = Clock(epoch, 10 * epoch, True, [], epoch / epochs, lambda epoch=epoch: leaving(epoch))
        fresh = ScheduleConfig(name="settled", options=options).build()
        fresh.load_state(schedule.state())  # a resumed run goes on from there
        schedule = fresh
        if reason := schedule.due(clock):
            found[epoch] = reason
    return found


def calm_from(epoch):
    """Other members at each epoch, and from one on nine of ten the same."""
    return lambda now: {"a": [0, 1, 2, 3, 4, 5, 6, 7, 8], "b": [now]} if now >= epoch else {"a": [now], "b": [now + 1]}


def test_it_waits_until_nearly_the_same_would_go():
    """At 5 for the first time; 9 of 11 are the same at 6 and 7."""
    found = asked(calm_from(5), overlap=0.8, looks=2, start=0)
    assert list(found) == [7]
    assert found[7] == "what narrow would take out has settled: 81.8% the same, 2 looks in a row"
    assert asked(calm_from(5), overlap=0.82, looks=2, start=0) == {}


def test_it_is_due_so_many_times():
    """After the first time it begins anew: a look, and two that are like the one before."""
    assert list(asked(calm_from(5), overlap=0.8, looks=2, start=0, times=2)) == [7, 10]


def test_when_it_looks():
    assert list(asked(calm_from(1), overlap=0.8, looks=1, start=0.5)) == [7]
    assert list(asked(calm_from(1), overlap=0.8, looks=1, start=0, epochs=3)) == [2]
    schedule = ScheduleConfig(name="settled", options={"steps": 4, "start": 0, "looks": 1}).build()
    looks = []
    for step in range(1, 13):
        schedule.due(Clock(0, step, False, [], step / 12, lambda step=step: looks.append(step) or {}))
    assert looks == [4, 8, 12]


def test_nothing_that_would_go_is_nothing_settled():
    assert asked(lambda epoch: {}, overlap=0.1, looks=1, start=0) == {}


def test_at_the_latest():
    found = asked(lambda epoch: {"a": [epoch]}, latest=0.5)
    assert found == {6: "0.5 of the budget is spent, and what narrow would take out changes yet"}


def test_wrong_options():
    for options, words in [
        ({"epochs": 1, "steps": 1}, "give either 'epochs' or 'steps'"),
        ({"latest": 0.05}, r"latest \(0.05\) does not lie behind start \(0.1\)"),
        ({"overlap": 1.5}, "overlap"),
    ]:
        with pytest.raises((OptionFaults, ValueError), match=words):
            ScheduleConfig(name="settled", options=options)
    with pytest.raises((OptionFaults, ValueError), match="lacks narrow, which the schedule settled looks at"):
        evolution(operators=[{"name": "widen"}])
    with pytest.raises(EvolveError, match="nobody tells it"):
        ScheduleConfig(name="settled", options={"start": 0}).build().due(Clock(1, 1, True))


def evolution(**changes):
    return EvolutionConfig.model_validate(
        {
            "schedule": {"name": "settled", "options": {"steps": 3, "looks": 2, "overlap": 0.5, "latest": 0.8}},
            "operators": [{"name": "narrow", "sites": ["*"], "options": {"target": {"params": 0.7}}}],
            **changes,
        }
    )


def test_a_run_prunes_when_it_has_settled_and_can_be_stopped(tmp_path):
    whole = make(tmp_path / "whole", evolution=evolution())
    whole.run()
    (record,) = whole.lineage.applied
    assert record.reason.startswith("what narrow would take out has settled")
    assert record.params_after <= 0.7 * record.params_before
    stop_after(make(tmp_path / "half", evolution=evolution()), record.step - 2).run()
    again = make(tmp_path / "half", evolution=evolution()).restore()
    again.run()
    assert digests(again) == digests(whole)


def test_a_look_leaves_the_run_as_it_was():
    """With a bar that nothing passes the run is the one without a schedule."""
    never = {"name": "settled", "options": {"steps": 1, "looks": 50}}
    looked, alone = make(evolution=evolution(schedule=never)), make(evolution=EvolutionConfig())
    looked.run()
    alone.run()
    assert not looked.lineage.records
    assert {k: v for k, v in digests(looked).items() if k != "history"} == {
        k: v for k, v in digests(alone).items() if k != "history"
    }


def test_a_loop_of_ones_own():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    config = EvolutionConfig.model_validate(
        {
            "schedule": {"name": "settled", "options": {"steps": 1, "looks": 2, "start": 0}},
            "operators": [{"name": "narrow", "sites": ["0"], "options": {"remove": 3}}],
        }
    )
    controller = evolve.MutationController(config, evolve.Loop(model, optimizer, example_inputs=x))
    due = []
    for _ in range(3):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        controller.before_step()
        optimizer.step()
        controller.after_step(loss)
        due.append(controller.due is not None)
    assert due == [False, False, True]
    assert [record.status for record in controller.mutate()] == ["applied"]
    assert model[0].out_features == 5
    unknown = {**config.model_dump(), "schedule": {"name": "settled"}}
    with pytest.raises(EvolveError, match="counts parts of the training"):
        evolve.MutationController(
            EvolutionConfig.model_validate(unknown), evolve.Loop(model, optimizer, example_inputs=x)
        )
    unknown["operators"] = [{"name": "narrow", "options": {"criterion": "taylor", "batches": 2}}]
    unknown["schedule"] = None
    with pytest.raises(EvolveError, match="narrow with batches: 2 reads training batches"):
        evolve.MutationController(
            EvolutionConfig.model_validate(unknown), evolve.Loop(model, optimizer, example_inputs=x)
        )
