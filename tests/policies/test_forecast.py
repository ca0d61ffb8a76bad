"""The forecast of the end of a budget, and the policy that grows by it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import evolve
from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.evolver.loss_curve import LossCurve
from evolve.policies import Candidate, Forecast, Race, Racer
from evolve.policies.projection import EXPONENT, NEXT, SHAPE, Estimate, end, lead, outlook, slope, written
from evolve.training.state import Counts


def test_the_slope_is_that_of_the_weighted_line():
    curve = [
        (weight, log, 2 + 0.5 / EXPONENT * math.exp(-EXPONENT * (log - 2))) for weight, log in ((1, 0), (1, 1), (5, 2))
    ]
    found = slope(curve, 2.0)
    assert found.value == pytest.approx(0.5)  # of the power law, where the logarithm is 2
    assert found.error == pytest.approx(0, abs=1e-9)
    assert slope(curve, 3.0).value == pytest.approx(0.5 * math.exp(-EXPONENT))
    assert slope(curve[:2], 2.0) is None


def test_the_lead_is_the_slope_of_the_gap_behind_the_birth():
    places = [(1 - ((100 + i + 1) / 160) ** -EXPONENT) / EXPONENT for i in range(60)]  # zero at the end of the race
    own = [3 - 0.3 * x for x in places]
    birth = [0.5 * (i < 20) for i in range(60)]  # the loss that a mutation cost at first
    child = [2.97 - 0.4 * x + more for x, more in zip(places, birth, strict=True)]
    gap, found = lead(100, own, child)
    assert found.value == pytest.approx(0.1, rel=1e-9)
    assert gap.value == pytest.approx(0.03, rel=1e-9)
    assert gap.error == pytest.approx(0, abs=1e-9)
    assert lead(100, own[:3], child[:3]) is None


def test_the_errors_of_gap_and_lead_are_those_of_noise():
    torch.manual_seed(0)
    noise = (0.05 * torch.randn(400, 2, 300)).tolist()
    gaps, leads = zip(*(lead(1000, own, child) for own, child in noise), strict=True)
    for found in (gaps, leads):
        scatter = torch.tensor([one.value for one in found]).std()
        assert scatter == pytest.approx(sum(one.error for one in found) / 400, rel=0.15)


def test_both_losses_are_followed_to_the_end():
    slope, gap, extra = Estimate(0.3, 0.0), Estimate(0.02, 0.0), Estimate(0.1, 0.01)
    found = outlook(Estimate(2.0, 0.03), slope, gap, extra, steps=100, left=900, held=700, until=0.8, ratio=2.0)
    ways = [(1 - more**-EXPONENT) / EXPONENT for more in (10, 5.5, 3.25)]
    assert found.ends[0].value == pytest.approx(2 - 0.3 * ways[0])
    assert found.ends[1].value == pytest.approx(2 - 0.02 - 0.4 * ways[1])
    fall = 0.02 + 0.4 * ways[1]
    assert found.ends[1].error == pytest.approx(math.hypot(0.03, 0.01 * ways[1], SHAPE * fall))
    assert found.ends[2].value == pytest.approx(2 - 0.02 * (1 + NEXT) - (0.3 + 0.1 * (1 + NEXT)) * ways[2])
    assert found.gain.value == pytest.approx(found.ends[0].value - found.ends[1].value)
    assert found.gain.error == pytest.approx(0.01 * ways[1])
    assert found.told[1].value == pytest.approx(2 - 0.02 - 0.4 * (1 - 4.5**-EXPONENT) / EXPONENT)


def test_a_steep_curve_ends_at_zero_and_not_below():
    assert end(2.0, 0.3, 10) == pytest.approx(2 - 0.3 * (1 - 10**-EXPONENT) / EXPONENT)
    assert end(0.1, 0.1, 10) == pytest.approx(0.01)  # a power law with the exponent 1
    assert end(1.0, EXPONENT * (1 + 1e-9), 50) == pytest.approx(end(1.0, EXPONENT, 50))  # one goes over into the other
    assert end(-1.0, 0.3, 10) == pytest.approx(-1 - 0.3 * (1 - 10**-EXPONENT) / EXPONENT)
    steep = Estimate(0.1, 0.0), Estimate(0.1, 0.02), Estimate(0.01, 0.0)
    found = outlook(*steep, Estimate(0.05, 0.01), steps=100, left=900, held=900, until=1.0, ratio=2.0)
    assert found.ends[0].value == pytest.approx(0.01)
    assert found.ends[1].value == pytest.approx(0.09 * 5.5 ** (-0.15 / 0.09))
    moved = 0.1 * 10**-1.2 - 0.09 * 5.5 ** (-0.17 / 0.09), 0.01 - 0.09 * 5.5 ** (-0.16 / 0.09)
    assert found.gain.error == pytest.approx(math.hypot(*(one - found.gain.value for one in moved)))
    found = outlook(*steep, Estimate(found.needed, 0.0), steps=100, left=900, held=900, until=1.0, ratio=2.0)
    assert found.ends[1].value == pytest.approx(0.01)


def test_a_growth_that_would_take_more_than_all_of_a_loss_leaves_nothing_of_it():
    known = Estimate(0.1, 0.0), Estimate(0.05, 0.0), Estimate(0.06, 0.0), Estimate(0.0, 0.0)
    found = outlook(*known, steps=100, left=900, held=900, until=1.0, ratio=2.0)
    assert found.ends[1].value > 0
    assert [end.value for end in found.ends[2:]] == pytest.approx([0, 0, 0], abs=1e-9)


def test_two_estimates_of_the_same_are_joined_by_their_certainty():
    found = Estimate(1.0, 0.1).joined(Estimate(2.0, 0.2))
    assert found.value == pytest.approx(1.2)
    assert found.error == pytest.approx(0.1 * 0.2 / math.hypot(0.1, 0.2))


def test_with_the_lead_that_is_needed_both_end_alike():
    level, slope, behind = Estimate(2.0, 0.0), Estimate(0.3, 0.0), Estimate(-0.03, 0.0)
    needed = outlook(level, slope, behind, Estimate(0.0, 0.0), 100, 900, 900, 1.0, 2.0).needed
    found = outlook(level, slope, behind, Estimate(needed, 0.0), 100, 900, 900, 1.0, 2.0)
    assert found.ends[0].value == pytest.approx(found.ends[1].value)
    assert found.gain.value == pytest.approx(0, abs=1e-12)
    assert outlook(level, slope, behind, Estimate(0.1, 0.0), 100, 0.0, 0.0, 1.0, 2.0).needed == math.inf


def test_a_curve_keeps_means_of_stretches_and_comes_back_from_json():
    curve = LossCurve()
    for step in range(1, 1025):
        curve.add(step, 10 - math.log(step))
    found = curve.points(512)
    assert len(curve.state_dict()) < 80  # 8 for each doubling
    assert sum(count for count, _, _ in found) == 513
    assert all(loss == pytest.approx(10 - place) for _, place, loss in found)
    again = LossCurve()
    again.load_state_dict(json.loads(json.dumps(curve.state_dict())))
    assert again.points(1) == curve.points(1)
    again.restart()
    assert again.points(1) == []


class _Context:
    """A run of 100 steps, at a tenth of its budget, whose larger model has a given lead."""

    step, progress, tried, held_until, epoch_steps, child_price = 100, 0.1, (), 0.8, None, 0.002
    in_seconds = False

    def __init__(
        self,
        lead: float,
        refused: tuple[str, ...] = (),
        level: float = 3,
        held_out: float | None = None,
        birth: float = 0,
    ) -> None:
        self.lead, self.refused, self.kept, self.raced = lead, refused, False, []
        self.level, self.birth, self.held_out = level, birth, 2.9 - lead if held_out is None else held_out

    def losses(self, since):
        return []

    def race(self, candidate, steps, most):
        steps = min(steps, math.ceil(most / 0.002))
        self.raced.append((candidate.operator, steps))
        if candidate.operator in self.refused:
            return None
        logs = [math.log((100 + i + 1) / 100) for i in range(steps)]
        own = Racer([self.level - 0.3 * x for x in logs], 0.001, 2.9)
        child = [self.level + self.birth - (0.3 + self.lead) * x for x in logs]
        return Race(own, Racer(child, self.child_price, self.held_out))

    def keep_own(self):
        self.kept = True


def forecast(**options):
    """Returns the policy, for runs of few steps."""
    return Forecast(**{"after": 40, **options})


STACK, WIDEN = Candidate("stack", "*", {}, 0), Candidate("widen", "*", {}, 1)


def test_it_grows_where_the_lead_is_enough_and_keeps_its_own_copy_where_not():
    policy, context = forecast(look=0.4, most=0.2), _Context(lead=0.5)
    choice = policy.choose([STACK, WIDEN], context)
    assert choice.candidate == STACK
    assert context.raced == [("stack", 40)]
    assert [one.operator for one in choice.others] == ["", "stack", "stack", "stack"]
    assert not policy.state()["settled"]
    assert policy.state()["spent"] == pytest.approx(0.04)

    policy, context = forecast(look=0.4, most=0.2), _Context(lead=0.001)
    assert policy.choose([STACK, WIDEN], context) is None
    assert context.kept
    ((text, facts),) = policy.news()
    assert text.endswith("the model stays")
    assert written(0.5, 0.1) == "0.5 ± 0.13"
    assert written(-0.5, 0.1) == "zero"
    assert not facts["grows"]
    assert facts["lead"][0] == pytest.approx(0.001, rel=0.05)
    assert policy.news() == []
    assert not policy.state()["settled"]
    assert policy.state()["spent"] == pytest.approx(0.08)


def test_it_stays_where_the_larger_one_has_not_made_up_for_its_birth_and_races_no_more():
    policy, context = forecast(look=0.4, most=0.2), _Context(lead=1, birth=0.5)  # it would be ahead after 65 steps
    assert policy.choose([STACK], context) is None
    kept, grown = policy.news()[0][1]["ends"][:2]
    assert grown[0] < kept[0]  # for what the line says of the end
    assert policy.state()["settled"]
    assert policy.choose([STACK], context) is None
    assert len(context.raced) == 1


def test_it_stays_where_the_larger_one_is_behind_on_held_out_data():
    assert forecast(look=0.4, most=0.2).choose([STACK], _Context(lead=0.5, held_out=2.8)) is not None
    assert forecast(look=0.4, most=0.2).choose([STACK], _Context(lead=0.5, held_out=3.0)) is None


@pytest.mark.parametrize(("steps", "races"), [(20, 10), (21, 40)])  # 50 and 48 epochs
def test_only_a_run_of_fifty_epochs_goes_by_them(steps, races):
    context = _of_epochs(steps, lead=-0.001)
    context.child_price = 0.001
    assert (forecast(look=0.4, most=0.2).choose([STACK], context) is not None) == (races == 10)
    assert context.raced == [("stack", races)]


def test_where_only_the_larger_one_is_short_of_steps_a_race_of_few_steps_decides_nothing():
    policy, context = forecast(look=0.4, most=0.3), _of_epochs(19, lead=0.5)
    context.progress, context.step = 0.05, 50
    assert policy.choose([STACK], context) is None
    assert context.kept
    assert policy.news() == []
    assert not policy.state()["settled"]
    assert policy.state()["spent"] == pytest.approx(8 * 0.002)
    context.progress, context.step = 0.1, 100
    assert policy.choose([STACK], context) is not None  # by how the losses fall
    assert context.raced == [("stack", 8), ("stack", 40)]


def test_nothing_is_said_of_a_run_of_less_than_eight_steps():
    for step, races in ((7, False), (8, True)):
        context = _of_epochs(2, lead=0.5)
        context.step = step
        forecast(look=0.4, most=0.2, after=1).choose([STACK], context)
        assert bool(context.raced) == races


def test_no_more_races_where_the_one_after_a_growth_says_no():
    policy, context = forecast(look=0.4, most=0.5), _Context(lead=3.0)
    assert policy.choose([STACK], context) is not None
    assert policy.state()["again"]
    later = _Context(lead=0.001)
    later.progress = 0.2
    assert policy.choose([STACK], later) is None
    assert later.kept
    assert not policy.state()["again"]


def test_what_a_growth_led_to_is_forgotten_with_it():
    policy = forecast(look=0.4, most=0.5)
    policy.choose([STACK], _Context(lead=3.0))
    assert policy.state()["again"]
    policy.forget()
    assert [policy.state()[key] for key in ("settled", "again", "plenty", "slope")] == [False, False, True, []]


def test_a_race_of_few_steps_says_nothing_of_further_growths():
    policy = forecast(look=0.4, most=0.2)
    assert policy.choose([STACK], _of_epochs(2, lead=3.0)) is not None
    assert not policy.state()["again"]
    policy = forecast(look=0.4, most=0.2)
    assert policy.choose([STACK], _of_epochs(2, lead=0.1, birth=1.0, held_out=5.0)) is None
    assert not policy.state()["settled"]


def test_what_races_have_cost_is_not_to_be_had_for_the_next_one():
    policy, context = forecast(look=0.4, most=0.05), _Context(lead=0.001)
    for _ in range(2):
        policy.choose([STACK], context)
    assert [steps for _, steps in context.raced] == [13, 12]  # of 0.002: half, and what is left


@pytest.mark.parametrize(("noise", "grows"), [(0.001, False), (0.02, True)])
def test_a_larger_one_that_ends_no_higher_by_all_that_is_known_is_taken(noise, grows):
    context = _Context(lead=0.055)
    race = context.race(STACK, 40, 1.0)
    other = [loss + noise * (-1) ** i for i, loss in enumerate(race.child.losses)]
    for held_out, taken in ((2.9, grows), (2.9 + noise, grows), (2.9 + 30 * noise, False)):
        child = replace(race.child, losses=other, held_out=held_out)
        context.race = lambda candidate, steps, most, child=child: replace(race, child=child)
        assert (forecast(look=0.4, most=0.2).choose([STACK], context) is not None) == taken


def test_the_parts_between_which_it_races_are_in_their_order():
    with pytest.raises(ValueError, match=r"a first and a later part of the budget; found \[0.12, 0.05\]"):
        Forecast(between=[0.12, 0.05])


def _of_epochs(steps, **more):
    """Returns a run of 1,000 steps, the larger model would make 450 of them, in epochs of so many."""
    context = _Context(**more)
    context.epoch_steps = steps
    return context


def test_where_data_are_short_it_grows_unless_held_out_data_speak_against_it():
    policy = forecast(look=0.4, most=0.2)
    assert policy.choose([STACK], _of_epochs(18, lead=0.001, held_out=3.04)) is not None  # 25 epochs left
    policy = forecast(look=0.4, most=0.2)
    short = _of_epochs(18, lead=0.001, held_out=3.05)
    assert policy.choose([STACK], short) is None
    assert short.raced == [("stack", 10)]
    assert not policy.state()["settled"]  # as the next one may be ahead
    assert forecast(look=0.4, most=0.2).choose([STACK], _of_epochs(19, lead=0.001)) is None  # steps are short


@pytest.mark.parametrize(
    ("price", "in_seconds", "held_out", "grows"),
    [
        (1.25, True, 3.04, True),
        (1.26, True, 2.0, False),
        (1.61, True, 2.0, False),
        (1.25, True, 3.05, False),
        (1.0, False, 2.0, False),
    ],
)
def test_it_grows_at_any_time_where_the_larger_one_takes_hardly_more_seconds(price, in_seconds, held_out, grows):
    policy, context = forecast(look=0.4, most=0.2, after=200), _Context(lead=-0.001, held_out=held_out)
    context.in_seconds, context.child_price = in_seconds, 0.001 * price
    assert (policy.choose([STACK], context) is not None) == grows
    assert context.raced == ([("stack", 10)] if in_seconds else [])
    policy.load_state(json.loads(json.dumps(policy.state())))
    policy.choose([STACK], context)
    again = 2 if price < 1.6 else 1  # what is surely dear is so later too
    assert len(context.raced) == (again if in_seconds else 0)
    raced = len(context.raced)
    policy.forget()
    policy.choose([STACK], context)
    assert len(context.raced) == raced + in_seconds


@pytest.mark.parametrize(("progress", "step", "races"), [(0.13, 100, 1), (0.16, 100, 0), (0.04, 22, 1), (0.04, 21, 0)])
def test_what_shows_the_seconds_of_a_larger_one_costs_little(progress, step, races):
    policy, context = forecast(after=200), _Context(lead=-0.001)
    context.in_seconds, context.child_price, context.progress, context.step = True, 0.001, progress, step
    assert (policy.choose([STACK], context) is not None) == (races == 1)
    assert len(context.raced) == races


def test_in_the_time_for_it_too_the_larger_one_that_takes_hardly_longer_is_taken():
    for held_out, grows in ((2.9, True), (3.05, False)):
        policy, context = forecast(look=0.4, most=0.2), _Context(lead=-0.1, birth=0.01, held_out=held_out)
        context.in_seconds, context.child_price = True, 0.0012
        assert (policy.choose([STACK], context) is not None) == grows
        assert context.raced == [("stack", 40)]
        assert not policy.state()["settled"]


def test_a_race_that_is_cut_short_says_nothing_of_the_seconds():
    policy, context = forecast(after=200), _Context(lead=0.5)
    context.in_seconds, context.child_price = True, 0.002
    race = context.race(STACK, 10, 1.0)
    context.race = lambda candidate, steps, most: Race(
        *(replace(one, losses=one.losses[:3]) for one in (race.own, race.child))
    )
    assert policy.choose([STACK], context) is None
    assert policy.state()["cheap"]


def test_where_neither_data_are_short_nor_a_step_takes_no_longer_a_race_of_few_steps_decides_nothing():
    policy, context = forecast(look=0.4, most=0.5, after=200), _of_epochs(21, lead=0.5)  # 48 epochs
    context.in_seconds, context.child_price = True, 0.0017
    assert policy.choose([STACK], context) is None
    assert [policy.state()[key] for key in ("plenty", "cheap", "settled")] == [True, False, False]
    context.step, context.epoch_steps = 300, 63
    policy.choose([STACK], context)
    assert [steps for _, steps in context.raced] == [10, 120]  # by how the losses fall


@pytest.mark.parametrize("when", [{"progress": 0.04}, {"progress": 0.13}, {"after": 101}])
def test_where_steps_are_short_a_race_is_neither_too_early_nor_too_late(when):
    options = {"look": 0.4, "most": 0.2, "after": when.get("after", 40)}
    for context, races in (
        (_Context(lead=0.5), False),
        (_of_epochs(100, lead=0.5), False),
        (_of_epochs(2, lead=0.5), True),
    ):
        context.progress = when.get("progress", 0.1)
        assert (forecast(**options).choose([STACK], context) is not None) == races
        assert bool(context.raced) == races
    usual = _Context(lead=0.5)
    assert forecast(look=0.4, most=0.2).choose([STACK], usual) is not None


@pytest.mark.parametrize(("lead", "again"), [(0.12, False), (3.0, True)])
def test_it_races_late_where_two_growths_were_forecast_to_be_better_than_one(lead, again):
    policy, late = forecast(look=0.4, most=0.2), _Context(lead=0.5)
    assert policy.choose([STACK], _Context(lead=lead)) is not None
    ends = policy.news()[0][1]["ends"]
    assert (ends[2][0] < ends[1][0]) == again
    policy.load_state(json.loads(json.dumps(policy.state())))
    late.progress = 0.16
    policy.choose([STACK], late)
    assert bool(late.raced) == again


def test_what_it_expected_of_the_slope_counts_in_the_next_race_until_the_growth_is_taken_back():
    policy, told = forecast(look=0.4, most=0.5), []
    for step, act in ((100, None), (200, None), (200, policy.forget)):
        if act:
            act()
        context = _Context(lead=0.5)
        race, context.step = context.race(STACK, 40, 1.0), step
        noisy = [[loss + 0.1 * (-1) ** i for i, loss in enumerate(one.losses)] for one in (race.own, race.child)]
        race = Race(*(replace(one, losses=losses) for one, losses in zip((race.own, race.child), noisy, strict=True)))
        context.race = lambda candidate, steps, most, race=race: race
        policy.choose([STACK], context)
        facts = policy.news()[0][1]
        told.append(Estimate(*facts["slope"]))
        if step == 100:
            expected = Estimate(*facts["slope"]) + Estimate(*facts["lead"])
        policy.load_state(json.loads(json.dumps(policy.state())))
    later = (240 / 140) ** -EXPONENT  # of the model that has grown it was steeper, and falls off since
    prior = Estimate(expected.value * later, math.hypot(expected.error, SHAPE * expected.value) * later)
    assert told[1] == pytest.approx(told[2].joined(prior))
    assert told[1].error < told[2].error


@pytest.mark.parametrize(("noise", "grows"), [(0.0, True), (0.8, False)])
def test_a_lead_within_its_error_is_none(noise, grows):
    context = _Context(lead=0.5)
    race = context.race(STACK, 40, 1.0)
    other = [loss + noise * (-1) ** i for i, loss in enumerate(race.child.losses)]
    context.race = lambda candidate, steps, most: replace(race, child=replace(race.child, losses=other))
    policy = forecast(look=0.4, most=0.2)
    assert (policy.choose([STACK], context) is not None) == grows
    assert not policy.state()["settled"]


def test_it_stays_where_the_larger_one_is_ahead_but_too_dear():
    context = _Context(lead=0.05)
    race = context.race(STACK, 40, 1.0)
    context.race = lambda candidate, steps, most: replace(race, child=replace(race.child, price=0.006))
    assert forecast(look=0.4, most=0.2).choose([STACK], context) is None


def test_what_was_forecast_is_told_beside_what_it_came_to():
    policy = forecast(look=0.4, most=0.2)
    policy.heard(1, 9.0, 0.01)  # nothing was forecast yet
    policy.choose([STACK], _Context(lead=0.5))
    ((text, facts),) = policy.news()
    assert "at 80% of the budget, where the learning rate begins to fall" in text
    assert facts["until"] == 0.8
    for step, (loss, progress) in enumerate([(9.0, 0.5), (2.0, 0.76), (1.0, 0.8)], start=101):
        policy.heard(step, loss, progress)
        again = forecast(look=0.4, most=0.2)
        again.load_state(json.loads(json.dumps(policy.state())))
    again.heard(104, 5.0, 0.9)  # it was told before
    assert again.news() == []
    ((text, came),) = policy.news()
    assert came == {"step": 103, "progress": 0.8, "loss": 1.5, "steps": 2, "expected": tuple(facts["ends"][1])}
    assert "begins to fall came to 1.5; forecast were" in text


def test_a_forecast_that_was_taken_back_or_was_followed_by_another_is_not_told():
    policy = forecast(look=0.4, most=0.5)
    policy.choose([STACK], _Context(lead=0.5))
    policy.forget()
    policy.heard(800, 2.0, 0.8)
    assert len(policy.news()) == 1  # the forecast
    policy.choose([STACK], _Context(lead=0.5))
    policy.heard(780, 9.0, 0.78)
    late = _Context(lead=0.5)
    late.progress = 0.79  # its race ends behind where the learning rate begins to fall
    policy.choose([STACK], late)
    for step, loss, progress in ((900, 9.0, 0.9), (960, 2.0, 0.96), (1000, 1.0, 1.0)):
        policy.heard(step, loss, progress)
    assert [facts["loss"] for _, facts in policy.news() if "loss" in facts] == [1.5]


def test_a_race_that_is_cut_short_says_nothing_and_counts():
    context, policy = _Context(lead=0.5), forecast(look=0.4)
    race = context.race(STACK, 7, 1.0)
    context.race = lambda candidate, steps, most: replace(race, child=replace(race.child, price=0.004))
    assert policy.choose([STACK], context) is None
    assert context.kept
    assert policy.news() == []
    assert policy.state()["spent"] == pytest.approx(7 * 0.004)


def test_steps_of_a_race_count_where_the_budget_is_in_steps():
    ends = []
    for counted in (0.0, 0.02):  # FLOPs of a race are spent when it ends, steps when the run goes on behind it
        context, policy = _Context(lead=0.0), forecast(look=0.2, most=0.2)
        race = context.race(STACK, 20, 1.0)

        def raced(candidate, steps, most, context=context, race=race, counted=counted):
            context.progress += counted
            return race

        context.race = raced
        policy.choose([STACK], context)
        ends.append(policy.news()[0][1]["ends"][0][0])
    assert ends[0] == pytest.approx(ends[1])


def test_the_end_is_forecast_where_the_learning_rate_falls_already_or_is_never_held():
    for held in (0.12, 1.0):
        context, policy = _Context(lead=0.5), forecast(look=0.4, most=0.2)
        context.held_until = held
        policy.choose([STACK], context)
        assert policy.news()[0][1]["until"] == 1
        policy.heard(150, 3.0, 0.9)
        policy.heard(200, 2.0, 1.0)
        assert policy.news()[0][1]["loss"] == 2


def test_the_next_operator_races_where_one_is_refused():
    context = _Context(lead=0.5, refused=("stack",))
    assert forecast().choose([STACK, WIDEN], context).candidate == WIDEN


def test_a_race_that_was_given_up_counts():
    class Broken(_Context):
        def race(self, candidate, steps, most):
            self.progress += 0.05
            return super().race(candidate, steps, most)

    policy = forecast()
    assert policy.choose([STACK], Broken(lead=0.5, refused=("stack",))) is None
    assert policy.state()["spent"] == pytest.approx(0.05)


def test_races_cost_no_more_than_they_may():
    context = _Context(lead=0.001)
    assert forecast(look=1.0, most=0.05).choose([STACK], context) is None
    assert context.raced == [("stack", 13)]  # of 0.002: half of what races may cost, so that another one is possible
    assert forecast(most=0.01).choose([STACK], context) is None
    assert len(context.raced) == 1  # so few steps would say nothing


def _evolver(seconds: bool = False) -> Evolver:
    torch.manual_seed(0)
    x = torch.randn(4096 if seconds else 512, 16)  # in seconds, epochs enough to be short of data are too many
    y = (x[:, :4].prod(dim=1) > 0).long()
    budget = {"seconds": 3.0} if seconds else {"flops": 9e6}
    return Evolver(
        nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)),
        (x, y),
        (x[:100], y[:100]),
        optimizer=evolve.OptimizerConfig(name="AdamW", options={"lr": 3e-3}),
        training=TrainingConfig(epochs=None, **budget),
        evolution=EvolutionConfig.model_validate(
            {
                "preset": "auto",
                "schedule": {"name": "at", "options": {"progress": [0.1]}},
                "policy": {"options": {"after": 40, "between": [0, 1]}},
            }
        ),
        batch_size=16,
        progress=False,
    )


def test_a_run_goes_on_behind_the_batches_of_a_race():
    told = []
    evolver = _evolver()
    evolver.controller.events.listen(told.append, evolve.training.events.ForecastMade)
    evolver.run()
    one, came = told
    assert came.facts["expected"] == one.facts["ends"][0]
    assert came.facts["loss"] == pytest.approx(one.facts["ends"][0][0], rel=0.2)
    assert one.facts["operator"] == "widen"  # an MLP has no blocks that are alike
    assert one.facts["cost"] == pytest.approx(1.5, abs=0.1)
    assert not one.facts["grows"]
    # The steps of its own copy count as the run's, those of the larger one were in vain.
    steps, vain = 9e6 / (3 * 2 * (16 * 4 + 4 * 2) * 16), one.facts["steps"] * one.facts["cost"]
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

    class Racing(evolve.Loop):
        def race(self, steps, stopping, most=math.inf):
            return None

    loop = Racing(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=torch.randn(2, 2))
    every = EvolutionConfig.model_validate({"preset": "auto", "schedule": {"name": "every", "options": {"steps": 5}}})
    with pytest.raises(evolve.errors.EvolveError, match="Tell the Loop how long it is"):
        evolve.MutationController(every, loop)


def test_presets_are_written_out_and_unknown_ones_told():
    auto = EvolutionConfig.model_validate("auto")
    assert auto.policy.name == "forecast"
    assert [operator.name for operator in auto.operators] == ["stack", "widen"]
    mine = EvolutionConfig.model_validate({"preset": "auto", "attempts": 2})
    assert mine == auto.model_copy(update={"attempts": 2})
    longer = EvolutionConfig.model_validate({"preset": "auto", "policy": {"options": {"look": 0.5}}})
    assert (longer.policy.name, longer.policy.options) == ("forecast", {"look": 0.5})
    assert longer.schedule == auto.schedule
    other = EvolutionConfig.model_validate({"preset": "auto", "policy": {"name": "random"}})
    assert (other.policy.name, other.policy.options) == ("random", {})
    with pytest.raises(ValueError, match=r"unknown preset 'atuo'. Did you mean 'auto'"):
        EvolutionConfig.model_validate("atuo")


def test_a_step_costs_what_it_takes_where_nothing_disturbs_it():
    evolver = _evolver(seconds=True)
    loop, took = evolver.controller.loop, evolver.state.took
    took.extend([1e-9] * 8)
    stretch = loop.copied().race(8, lambda: False)
    assert stretch.price == pytest.approx(1e-9 / 3.0)  # of the run
    assert list(took) == [1e-9] * 8
    evolver.state.forward = nn.Sequential(loop.model)  # as if it were compiled, which copies are not
    assert loop.copied().race(8, lambda: False).price > 1e-6
    evolver.state.forward = loop.model
    child = loop.copied()
    child.mutated([evolve.mutate(child.model, "widen", site="*", example_inputs=loop.example)])
    assert child.race(8, lambda: False).price > 1e-6  # its steps alone, as they are those of another model
    assert len(took) == 8
    snapshot = loop.snapshot([Counts(evolver.state)])
    snapshot.restore()
    assert not took  # the model is another one


def test_the_last_steps_of_a_run_are_timed():
    evolver = _evolver()
    evolver.run()
    took = evolver.state.took
    assert len(took) == 8
    assert 0 < max(took) < evolver.state.seconds
