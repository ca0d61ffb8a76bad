"""When, what and where."""

import json

import pytest

from evolve.errors import EvolveError
from evolve.policies import Candidate, PolicyConfig
from evolve.schedules import Clock, ScheduleConfig


def due(schedule, epochs=8, steps_per_epoch=3, losses=None):
    """The (epoch, step) at which a schedule is due, in a run whose state is saved and loaded after each step."""
    found, history = [], []
    for step in range(1, epochs * steps_per_epoch + 1):
        epoch, end = step // steps_per_epoch, step % steps_per_epoch == 0
        if end:
            history.append({"val_loss": losses[epoch - 1] if losses else 1.0, "epoch": epoch})
        reason = schedule.due(Clock(epoch, step, end, history, step / (epochs * steps_per_epoch)))
        if reason:
            found.append((epoch, step))
        state = json.loads(json.dumps(schedule.state()))
        schedule = type(schedule)(**schedule.options.model_dump(exclude_none=True))
        schedule.load_state(state)
    return found


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("every", {"epochs": 3}, [(3, 9), (6, 18)]),
        ("every", {"epochs": 2, "start": 3, "stop": 6}, [(4, 12), (6, 18)]),
        ("every", {"steps": 10}, [(3, 10), (6, 20)]),
        ("at", {"epochs": [2, 5]}, [(2, 6), (5, 15)]),
        ("at", {"steps": [1, 7]}, [(0, 1), (2, 7)]),
        ("every", {"progress": 0.25}, [(2, 6), (4, 12), (6, 18), (8, 24)]),
        ("every", {"progress": 0.1, "start": 0.3, "stop": 0.6}, [(2, 8), (3, 10), (4, 12), (5, 15)]),
        ("every", {"progress": 0.02, "stop": 0.1}, [(0, 1), (0, 2)]),
        ("at", {"progress": [0.5, 0.1, 0.51]}, [(1, 3), (4, 12), (4, 13)]),
    ],
)
def test_counting_schedules(name, options, expected):
    assert due(ScheduleConfig(name=name, options=options).build()) == expected


def test_plateau_waits_and_begins_anew():
    losses = [1.0, 0.8, 0.81, 0.80, 0.79, 0.79, 0.79, 0.9]
    plain = {"patience": 2, "smoothing": 0.0}
    schedule = ScheduleConfig(name="plateau", options={**plain, "min_delta": 0.0}).build()
    assert due(schedule, losses=losses) == [(4, 12), (7, 21)]
    schedule = ScheduleConfig(name="plateau", options={**plain, "min_delta": 0.3}).build()
    assert due(schedule, losses=losses) == [(3, 9), (6, 18)]  # a fifth is not three tenths
    higher = ScheduleConfig(name="plateau", options={**plain, "mode": "max"}).build()
    assert due(higher, losses=[0.5, 0.7, 0.705, 0.706, 0.8, 0.7, 0.7, 0.7]) == [(4, 12), (7, 21)]
    with pytest.raises(EvolveError, match="watches 'accuracy', which is not among val_loss"):
        due(ScheduleConfig(name="plateau", options={"metric": "accuracy"}).build())


CANDIDATES = [
    Candidate("residual", "a", {}, 0),
    Candidate("residual", "b", {}, 0),
    Candidate("deepen", "a", {"ratio": 2.0}, 1),
    Candidate("deepen", "c", {"ratio": 2.0}, 1),
    Candidate("deepen", "d", {"ratio": 2.0}, 1),
]


class Nothing:
    """A context in which nothing was refused."""

    tried = ()


@pytest.mark.parametrize("name", ["round_robin", "random"])
def test_what_was_refused_is_not_tried_again_in_the_same_round(name):
    context, policy = Nothing(), PolicyConfig(name=name).build()
    context.tried = []
    for _ in CANDIDATES:
        context.tried.append(policy.choose(CANDIDATES, context).candidate)
    assert sorted((c.operator, c.site) for c in context.tried) == sorted((c.operator, c.site) for c in CANDIDATES)
    assert policy.choose(CANDIDATES, context) is None


def choices(policy, count, candidates=CANDIDATES):
    """What a policy chooses, saved and loaded after each choice."""
    found = []
    for _ in range(count):
        chosen = policy.choose(candidates, Nothing())
        found.append(chosen and (chosen.candidate.operator, chosen.candidate.site))
        state = json.loads(json.dumps(policy.state()))
        policy = type(policy)(**policy.options.model_dump())
        policy.load_state(state)
    return found


def test_round_robin_takes_operators_and_sites_in_turn():
    expected = [
        ("residual", "a"),
        ("deepen", "a"),
        ("residual", "b"),
        ("deepen", "c"),
        ("residual", "a"),
        ("deepen", "d"),
    ]
    assert choices(PolicyConfig(name="round_robin").build(), 6) == expected
    only = [c for c in CANDIDATES if c.operator == "deepen"]
    assert choices(PolicyConfig(name="round_robin").build(), 2, only) == [("deepen", "a"), ("deepen", "c")]


def test_random_gives_each_operator_the_same_chance():
    found = choices(PolicyConfig(name="random", options={"seed": 1}).build(), 400)
    share = sum(operator == "residual" for operator, _ in found) / 400
    assert 0.43 < share < 0.57
    assert len(set(found)) == 5
    assert found == choices(PolicyConfig(name="random", options={"seed": 1}).build(), 400)
    assert found != choices(PolicyConfig(name="random", options={"seed": 2}).build(), 400)


def test_fixed_goes_through_its_list_once():
    steps = [{"operator": "deepen", "site": "c"}, {"operator": "residual"}, {"operator": "deepen", "site": "elsewhere"}]
    policy = PolicyConfig(name="fixed", options={"steps": steps}).build()
    assert choices(policy, 4) == [("deepen", "c"), ("residual", "a"), ("deepen", "elsewhere"), None]
    chosen = PolicyConfig(name="fixed", options={"steps": steps[2:]}).build().choose(CANDIDATES, Nothing())
    assert chosen.candidate.options == {"ratio": 2.0}
