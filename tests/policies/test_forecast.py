"""The forecast of the end of a budget, and the policy that grows by it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import evolve
from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.evolver.loss_curve import LossCurve
from evolve.policies import Candidate, Forecast, Race, Racer
from evolve.policies.projection import EXPONENT, NEXT, Estimate, lead, outlook, slope


def test_the_slope_is_that_of_the_weighted_line():
    points = [(1.0, 0.0, 3.0), (1.0, 1.0, 2.5), (5.0, 2.0, 2.0)]
    found = slope(points)
    assert found.value == pytest.approx(0.5)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert slope(points[:2]) is None


def test_the_lead_is_the_difference_of_the_slopes():
    own = [3 - 0.3 * math.log((100 + i + 1) / 100) for i in range(40)]
    child = [3 - 0.4 * math.log((100 + i + 1) / 100) for i in range(40)]
    assert lead(100, own, child).value == pytest.approx(0.1, rel=1e-9)


def test_both_losses_are_followed_to_the_end():
    found = outlook(2.0, Estimate(0.3, 0.0), Estimate(0.1, 0.01), steps=100, left=900, ratio=2.0)
    own = 0.3 * (1 - 10**-EXPONENT) / EXPONENT
    assert found.ends[0].value == pytest.approx(2 - own)
    grown = 0.3 * (1 - 5.5**-EXPONENT) / EXPONENT + 0.1 * math.log(5.5)
    assert found.ends[1].value == pytest.approx(2 - grown)
    assert found.ends[1].error == pytest.approx(0.01 * math.log(5.5))
    twice = 0.3 * (1 - 3.25**-EXPONENT) / EXPONENT + 0.1 * (1 + NEXT) * math.log(3.25)
    assert found.ends[2].value == pytest.approx(2 - twice)


def test_with_the_lead_that_is_needed_both_end_alike():
    needed = outlook(2.0, Estimate(0.3, 0.0), Estimate(0.0, 0.0), 100, 900, 2.0).needed
    found = outlook(2.0, Estimate(0.3, 0.0), Estimate(needed, 0.0), 100, 900, 2.0)
    assert found.ends[0].value == pytest.approx(found.ends[1].value)
    assert outlook(2.0, Estimate(0.3, 0.0), Estimate(0.1, 0.0), 100, 0.0, 2.0).needed == math.inf


def test_a_curve_keeps_means_of_stretches_and_comes_back_from_json():
    curve = LossCurve()
    for step in range(1, 1025):
        curve.add(step, 10 - math.log(step))
    found = curve.points(512)
    assert len(curve.state()) < 80  # 8 for each doubling
    assert sum(count for count, _, _ in found) == 513
    assert all(loss == pytest.approx(10 - place) for _, place, loss in found)
    again = LossCurve()
    again.load_state(json.loads(json.dumps(curve.state())))
    assert again.points(1) == curve.points(1)
    again.restart()
    assert again.points(1) == []


class _Context:
    """A run of 100 steps, at a tenth of its budget, whose larger model has a given lead."""

    step, progress, tried = 100, 0.1, ()

    def __init__(self, lead: float, refused: tuple[str, ...] = ()) -> None:
        self.lead, self.refused, self.kept, self.raced = lead, refused, False, []

    def losses(self, since):
        return []

    def race(self, candidate, steps):
        self.raced.append((candidate.operator, steps))
        if candidate.operator in self.refused:
            return None
        logs = [math.log((100 + i + 1) / 100) for i in range(steps)]
        own = Racer([3 - 0.3 * x for x in logs], 0.001, 2.9)
        return Race(own, Racer([3 - (0.3 + self.lead) * x for x in logs], 0.002, 2.9 - self.lead))

    def keep_own(self):
        self.kept = True


STACK, WIDEN = Candidate("stack", "*", {}, 0), Candidate("widen", "*", {}, 1)


def test_it_grows_where_the_lead_is_enough_and_keeps_its_own_copy_where_not():
    policy, context = Forecast(look=0.4), _Context(lead=0.5)
    choice = policy.choose([STACK, WIDEN], context)
    assert choice.candidate == STACK
    assert context.raced == [("stack", 40)]
    assert [one.operator for one in choice.others] == ["", "stack", "stack", "stack"]
    assert policy.state() == {"settled": False, "spent": pytest.approx(0.04)}

    policy, context = Forecast(look=0.4), _Context(lead=0.001)
    assert policy.choose([STACK, WIDEN], context) is None
    assert context.kept
    ((text, facts),) = policy.news()
    assert text.endswith("the model stays")
    assert not facts["grows"]
    assert facts["lead"][0] == pytest.approx(0.001)
    assert policy.news() == []
    assert policy.state() == {"settled": True, "spent": pytest.approx(0.08)}
    assert policy.choose([STACK], context) is None  # so far from paying that no other race is worth its cost
    assert len(context.raced) == 1


def test_the_next_operator_races_where_one_is_refused():
    context = _Context(lead=0.5, refused=("stack",))
    assert Forecast().choose([STACK, WIDEN], context).candidate == WIDEN


def test_races_cost_no_more_than_they_may():
    context = _Context(lead=0.001)
    assert Forecast(look=1.0, most=0.05).choose([STACK], context) is None
    assert context.raced == [("stack", 25)]  # 25 steps of 0.002
    assert Forecast(most=0.01).choose([STACK], context) is None
    assert len(context.raced) == 1  # five steps would say nothing


def _evolver(seconds: bool = False) -> Evolver:
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    y = (x[:, :4].prod(dim=1) > 0).long()
    budget = {"seconds": 3.0} if seconds else {"flops": 1.2e7}
    return Evolver(
        nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)),
        (x, y),
        (x[:100], y[:100]),
        optimizer=evolve.OptimizerConfig(name="AdamW", options={"lr": 3e-3}),
        training=TrainingConfig(epochs=None, **budget),
        evolution=EvolutionConfig.model_validate(
            {"preset": "auto", "schedule": {"name": "at", "options": {"progress": [0.1]}}}
        ),
        batch_size=16,
        progress=False,
    )


def test_a_run_goes_on_behind_the_batches_of_a_race():
    told = []
    evolver = _evolver()
    evolver.controller.events.listen(told.append, evolve.training.events.ForecastMade)
    evolver.run()
    (one,) = told
    assert one.facts["operator"] == "widen"  # an MLP has no blocks that are alike
    assert one.facts["cost"] == pytest.approx(2, abs=0.2)
    assert not one.facts["grows"]
    # The steps of its own copy count as the run's, those of the larger one were in vain.
    steps, vain = 1.2e7 / (3 * 2 * (16 * 4 + 4 * 2) * 16), one.facts["steps"] * one.facts["cost"]
    assert evolver.state.step == pytest.approx(steps - vain, abs=1)
    epochs, batch = divmod(evolver.state.step, 32)
    assert (evolver.state.epoch, evolver.state.batch) == (epochs, batch)


def test_the_cost_of_a_step_is_measured_where_seconds_are_the_budget():
    told = []
    evolver = _evolver(seconds=True)
    evolver.controller.events.listen(told.append, evolve.training.events.ForecastMade)
    evolver.run()
    assert 0.5 < told[0].facts["cost"] < 2  # a step of such a small network takes as long as one of twice its width
    assert told[0].facts["ends"][0][0] > 0


def test_a_loop_of_ones_own_is_told_what_it_lacks():
    model = nn.Linear(2, 2)
    loop = evolve.Loop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=torch.randn(2, 2), steps=10)
    with pytest.raises(evolve.errors.EvolveError, match="write its method `race`"):
        evolve.MutationController(EvolutionConfig.model_validate("auto"), loop)


def test_presets_are_written_out_and_unknown_ones_told():
    auto = EvolutionConfig.model_validate("auto")
    assert auto.policy.name == "forecast"
    assert [operator.name for operator in auto.operators] == ["stack", "widen"]
    mine = EvolutionConfig.model_validate({"preset": "auto", "attempts": 2})
    assert mine == auto.model_copy(update={"attempts": 2})
    with pytest.raises(ValueError, match=r"unknown preset 'atuo'. Did you mean 'auto'"):
        EvolutionConfig.model_validate("atuo")
