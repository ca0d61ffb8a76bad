"""Policies that look at the run: what they choose, what they say of it, and that a resumed run knows the same."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers.runs import stop_after
from torch import nn

from evolve import EvolutionConfig, Evolver, OptimizerConfig, TrainingConfig, mutate, sites
from evolve.config.options import Monitor
from evolve.errors import EvolveError
from evolve.lineage import Reasons, Record, Weighed
from evolve.policies import Candidate, PolicyConfig, Promise

A, B, C = Candidate("widen", "a", {}, 0), Candidate("widen", "b", {}, 0), Candidate("deepen", "c", {}, 1)


@dataclass
class Told:
    """A context that is made up."""

    promises: dict[str, Promise] = field(default_factory=dict)
    losses: dict[str | None, float | None] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    tried: list[Candidate] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    monitor: Monitor = field(default_factory=Monitor)

    def promise(self, candidate, score, batches):
        self.asked.append((score, batches))
        return self.promises[candidate.site]

    def depth(self, candidate):
        return {"a": 0.0, "b": 0.9, "c": 0.5}[candidate.site]

    def child(self, candidate, steps):
        self.asked.append((candidate and candidate.site, steps))
        return self.losses[candidate and candidate.site]


def policy(name, **options):
    return PolicyConfig(name=name, options=options).build()


PROMISES = {"a": Promise(4.0, 100, 1000), "b": Promise(3.0, 10, 2000), "c": Promise(None, note="No score knows it.")}


def test_gradient_takes_the_highest_score_and_says_what_the_others_had():
    told = Told(PROMISES)
    choice = policy("gradient", score="tiny", batches=3).choose([A, B, C], told)
    assert (choice.candidate, choice.value, choice.by) == (A, 4.0, "tiny")
    assert choice.others == [
        Weighed(operator="widen", site="b", value=3.0),
        Weighed(operator="deepen", site="c", value=None, note="No score knows it."),
    ]
    assert told.asked == [("tiny", 3)] * 3


def test_gradient_per_parameter_and_per_flop():
    choice = policy("gradient", per="params").choose([A, B, C], Told(PROMISES))
    assert (choice.candidate, choice.value, choice.by) == (B, 0.3, "senn per params")
    choice = policy("gradient", per="flops").choose([A, B, C], Told(PROMISES))
    assert (choice.candidate, choice.value) == (A, 0.004)


def test_gradient_goes_on_with_the_next_best():
    told = Told(PROMISES, tried=[A])
    assert policy("gradient").choose([A, B, C], told).candidate == B
    told.tried = [A, B]
    assert policy("gradient").choose([A, B, C], told).candidate == C
    told.tried = [A, B, C]
    assert policy("gradient").choose([A, B, C], told) is None


def test_gradient_weighs_no_more_than_it_may():
    many = [Candidate("widen", "a", {"add": n}, 0) for n in range(1, 9)] + [Candidate("deepen", "c", {}, 1)]
    told = Told(PROMISES)
    choice = policy("gradient", candidates=4).choose(many, told)
    assert len(told.asked) == 4
    assert {choice.candidate.operator, *(other.operator for other in choice.others)} == {"widen", "deepen"}
    again = policy("gradient", candidates=4).choose(many, told)
    assert again == choice
    seeds = {policy("gradient", candidates=4, seed=s).choose(many, told).candidate.options["add"] for s in range(9)}
    assert len(seeds) > 1


def turn(choice, epoch, *, success=True, flops=(100, 200)):
    """The record of a bandit's choice."""
    candidate = choice.candidate
    chosen = Weighed(operator=candidate.operator, site=candidate.site, value=choice.value, region=choice.region)
    return Record(
        epoch=epoch,
        operator=candidate.operator,
        site=candidate.site,
        status="applied" if success else "rejected",
        success=success,
        message="",
        preserves="exact",
        params_before=1,
        params_after=1,
        flops_before=flops[0],
        flops_after=flops[1],
        choice=Reasons(policy="bandit", by=choice.by, chosen=chosen),
    )


def test_bandit_rewards_are_falls_of_log_loss_per_growth_of_log_flops():
    bandit = policy("bandit", regions=2)
    history = [{"val_loss": math.exp(-x)} for x in (0.0, 0.1, 0.3, 0.9, 0.9)]
    first = bandit.choose([A], Told())
    second = bandit.choose([B], Told())
    third = bandit.choose([C], Told())
    assert (first.note, second.note) == ("region 1 of 2, tried 0 times", "region 2 of 2, tried 0 times")
    records = [
        turn(first, 1, flops=(100, 150)),
        turn(second, 3, flops=(150, 151)),
        turn(third, 4, success=False),
        turn(first, 5),
    ]
    rewards = bandit.rewards(records, history)
    assert set(rewards) == {("widen", "region 1 of 2"), ("widen", "region 2 of 2"), ("deepen", "region 2 of 2")}
    assert rewards["widen", "region 1 of 2"] == pytest.approx([0.3 / 2 / math.log(1.5)])  # two epochs
    assert rewards["widen", "region 2 of 2"] == pytest.approx([0.6 / math.log(1.25)])  # less counts as that
    assert rewards["deepen", "region 2 of 2"] == [0.0]  # refused
    floor = policy("bandit", regions=2, least=0.01).rewards(records, history)
    assert floor["widen", "region 2 of 2"] == pytest.approx([0.6 / math.log(1.01)])


def test_bandit_rewards_are_over_the_growth_of_what_counts():
    history = [{"val_loss": math.exp(-x), "seconds": 1.0 + 2 * (x > 0.2)} for x in (0.0, 0.1, 0.3, 0.9)]
    history[1]["seconds"] = 9.0  # a mutation falls into it: the median of 1, 9 | 3, 3 is 5 and 3
    one = turn(policy("bandit").choose([A], Told()), 2, flops=(100, 150)).model_copy(update={"params_after": 4})
    fall = (0.9 - 0.1) / 2
    for per, growth in (("flops", 1.5), ("params", 4.0), ("seconds", 1.25)):
        ((reward,),) = policy("bandit", per=per).rewards([one], history).values()
        assert reward == pytest.approx(fall / math.log(growth))
    history[1]["seconds"] = 1.0
    ((reward,),) = policy("bandit", per="seconds").rewards([one], history).values()
    assert reward == pytest.approx(fall / math.log(3))
    with pytest.raises(EvolveError, match="looks at 'seconds', which is not among val_loss"):
        policy("bandit", per="seconds").rewards([one], [{"val_loss": 1.0}] * 4)


def test_bandit_takes_a_bad_epoch_for_no_gain_of_the_next_arm():
    bandit = policy("bandit", regions=2)
    history = [{"val_loss": math.exp(-x)} for x in (0.0, 0.3, 0.1, 0.0, 0.4, 0.2, 0.4)]
    first, second = bandit.choose([A], Told()), bandit.choose([C], Told())
    rewards = bandit.rewards([turn(first, 1), turn(second, 4)], history)
    assert rewards["widen", "region 1 of 2"] == pytest.approx([0.3 / 3 / math.log(2)])
    assert rewards["deepen", "region 2 of 2"] == pytest.approx([0.1 / 3 / math.log(2)])  # against 0.3 of epoch 2


def test_bandit_counts_two_steps_as_one_that_comes_to_the_same():
    bandit = policy("bandit", regions=2)
    history = [{"val_loss": math.exp(-x)} for x in (0.0, 0.2, 0.4, 0.8)]
    steps = [
        turn(bandit.choose([A], Told()), 1, flops=(100, 150)),
        turn(bandit.choose([A], Told()), 2, flops=(150, 225)),
    ]
    (small, same) = bandit.rewards(steps, history[:3])["widen", "region 1 of 2"]
    (large,) = bandit.rewards([turn(bandit.choose([A], Told()), 1, flops=(100, 225))], [history[0], history[2]])[
        "widen", "region 1 of 2"
    ]
    assert small == pytest.approx(large) == pytest.approx(same)


@pytest.mark.parametrize(
    ("before", "after", "tenfolds"),
    [(0.9, 1.0, 1), (1.0, 0.9, -1), (0.9, 1 - 1e-7, 1), (1.0, 1.0, 0), (0.9, 0.985, math.log10(0.1 / 0.015))],
)
def test_bandit_counts_no_more_than_tenfold_where_next_to_nothing_is_left(before, after, tenfolds):
    """An accuracy of 1 leaves nothing of what a rise is measured by."""
    bandit = policy("bandit")
    bandit.follow(Monitor("val_accuracy", "max", 1.0))
    history = [{"val_accuracy": before}, {"val_accuracy": after}]
    ((reward,),) = bandit.rewards([turn(bandit.choose([A], Told()), 1)], history).values()
    assert reward == pytest.approx(tenfolds * math.log(10) / math.log(2))


def test_bandit_passes_over_losses_that_are_no_numbers():
    bandit, nan, inf = policy("bandit"), float("nan"), float("inf")
    played = turn(bandit.choose([A], Told()), 2)

    def rewards(*losses):
        return bandit.rewards([played], [{"val_loss": loss} for loss in losses])

    assert rewards(inf, 0.8, nan, 0.5) == rewards(0.9, 0.8, 0.6, 0.5)
    assert list(rewards(0.9, 0.8, nan, inf).values()) == [[0.0]]
    assert rewards(nan, nan, 0.6, 0.5) == {}


def test_bandit_tries_every_arm_and_stays_with_what_pays():
    bandit = policy("bandit", seed=3)
    told, loss = Told(history=[{"val_loss": 1.0}]), 1.0
    chosen = []
    for epoch in range(1, 40):
        choice = bandit.choose([A, B, C], told)
        chosen.append(choice.candidate.site)
        assert {choice.candidate.operator, *(other.operator for other in choice.others)} == {"widen", "deepen"}
        told.records.append(turn(choice, epoch))
        loss *= 0.9 if choice.candidate == B else 1.0
        told.history.append({"val_loss": loss})
    assert set(chosen) == {"a", "b", "c"}
    assert chosen.count("b") > 20
    told.records = told.records[:1]
    assert chosen[1] == bandit.choose([A, B, C], Told(records=told.records, history=told.history[:2])).candidate.site


def test_bandit_plays_every_arm_before_it_plays_one_again():
    for seed in range(5):
        bandit, told, played = policy("bandit", seed=seed), Told(history=[{"val_loss": 1.0}]), []
        for epoch in range(1, 4):
            choice = bandit.choose([A, B, C], told)
            played.append(choice.candidate.site)
            told.records.append(turn(choice, epoch))
            told.history.append({"val_loss": told.history[-1]["val_loss"] * 0.9})  # whatever is played pays
        assert set(played) == {"a", "b", "c"}


def test_bandit_without_exploration_is_greedy_and_with_much_is_even():
    found = {}
    for exploration in (0.0, 100.0):
        bandit, told, chosen = policy("bandit", exploration=exploration), Told(history=[{"val_loss": 1.0}]), []
        for epoch in range(1, 31):
            choice = bandit.choose([A, B, C], told)
            chosen.append(choice.candidate.site)
            told.records.append(turn(choice, epoch))
            told.history.append({"val_loss": told.history[-1]["val_loss"] * 0.9})
        found[exploration] = max(map(chosen.count, "abc"))
    assert found == {0.0: 28, 100.0: 10}


def test_bandit_says_which_metrics_there_are():
    bandit = policy("bandit", metric="val_los")
    told = Told(history=[{"val_loss": 1.0}, {"val_loss": 1.0}])
    told.records = [turn(bandit.choose([A], Told()), 1)]
    with pytest.raises(EvolveError, match="looks at 'val_los', which is not among val_loss"):
        bandit.choose([A, B], told)


def test_hill_climb_takes_the_best_child():
    told = Told(losses={"a": 0.5, "b": None, "c": 0.4, None: 0.6})
    choice = policy("hill_climb", children=3, steps=7).choose([A, B, C], told)
    assert (choice.candidate, choice.value, choice.by) == (C, 0.4, "val_loss after 7 steps")
    assert sorted(told.asked, key=str) == [("a", 7), ("b", 7), ("c", 7), (None, 7)]
    assert choice.others == [
        Weighed(operator="widen", site="a", value=0.5),
        Weighed(operator="", value=0.6, note="not mutated"),
        Weighed(operator="widen", site="b", note="refused, or given up"),
    ]


def test_hill_climb_changes_nothing_where_no_child_is_better(caplog):
    told = Told(losses={"a": 0.5, "b": None, "c": 0.4, None: 0.3})
    with caplog.at_level(logging.INFO, "evolve.policies.hill_climb"):
        assert policy("hill_climb").choose([A, B, C], told) is None
    assert "No child came to a better val_loss than the model's own, 0.3" in caplog.text
    assert policy("hill_climb").choose([A], Told(losses={"a": 0.1}, tried=[A])) is None
    assert policy("hill_climb").choose([A], Told(losses={"a": None, None: 0.3})) is None
    assert policy("hill_climb").choose([A], Told(losses={"a": 0.1, None: None})) is None  # nothing to compare with


def test_hill_climb_draws_by_its_seed():
    many = [Candidate("widen", site, {}, 0) for site in "abcdefgh"]
    drawn = set()
    for seed in (0, 0, 1):
        told = Told(losses=dict.fromkeys([*"abcdefgh", None], 1.0))
        policy("hill_climb", children=2, seed=seed).choose(many, told)
        drawn.add(tuple(site for site, _ in told.asked))
    assert len(drawn) == 2
    assert all(len(sites) == 3 for sites in drawn)


def test_hill_climb_draws_others_when_it_is_asked_again_also_in_a_resumed_run():
    many, climb = [Candidate("widen", site, {}, 0) for site in "abcdefgh"], policy("hill_climb", children=4)

    def drawn():
        told = Told(losses=dict.fromkeys("abcdefgh", 1.0) | {None: 0.5})  # the model as it is wins: no record is made
        climb.choose(many, told)
        return tuple(site for site, _ in told.asked)

    first, state, second = drawn(), climb.state(), drawn()
    assert first != second
    climb = policy("hill_climb", children=4)
    climb.load_state(state)
    assert drawn() == second


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def run(policy, folder=None, *, epochs=4, options=None, **training):
    """An Evolver that mutates after every epoch."""
    torch.manual_seed(1)
    x = torch.randn(96, 6)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    evolution = EvolutionConfig(
        schedule={"name": "every", "options": {"epochs": 1}},
        policy={"name": policy, "options": options or {}},
        operators=[{"name": "widen", "options": {"add": 1}}, {"name": "deepen"}],
    )
    return Evolver(
        net(),
        (x, y),
        (x[:32], y[:32]),
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.1, "momentum": 0.9}),
        training=TrainingConfig(epochs=epochs, device="cpu", **training),
        evolution=evolution,
        output=str(folder) if folder else None,
        batch_size=16,
        progress=False,
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("gradient", {"score": "gradmax"}), ("gradient", {}), ("bandit", {}), ("hill_climb", {"steps": 3, "children": 2})],
)
def test_a_run_says_why_and_a_resumed_one_ends_as_one_that_was_not_stopped(name, options, tmp_path):
    whole = run(name, tmp_path / "whole", options=options)
    whole.run()
    first = whole.lineage.records[0]
    assert first.choice.policy == name
    assert first.choice.chosen.site == first.site
    assert first.choice.chosen.value is not None
    assert first.choice.others
    assert first.choice.seconds > 0
    assert first.choice.candidates >= len(first.choice.others)

    stop_after(run(name, tmp_path / "stopped", options=options), 14).run()
    resumed = run(name, tmp_path / "stopped", options=options).restore()
    resumed.run()
    assert resumed.lineage.digest() == whole.lineage.digest()
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert resumed.state.flops == whole.state.flops


def test_deciding_draws_no_random_number_and_changes_no_weight():
    evolver = run("gradient")
    candidates = evolver.controller.proposer.candidates(evolver.model)
    before = {key: value.clone() for key, value in evolver.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name in ("gradient", "hill_climb"):
        policy(name).choose(candidates, evolver.controller.proposer.context(evolver.history))
    assert torch.equal(torch.rand(3), expected)
    after = evolver.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert evolver.state.step == 0
    assert not evolver.state.optimizer.state


def test_the_best_child_becomes_the_model_with_what_it_has_learned():
    evolver = run("hill_climb", options={"children": 3, "steps": 12}, ema=0.9)
    model, optimizer = evolver.model, evolver.state.optimizer
    kept = dict(model.named_parameters())
    context = evolver.controller.proposer.context(evolver.history)
    evolver.controller.proposer.context = lambda history: context
    answers = evolver.controller.proposer.attempt("asked for", [])
    (record,) = [answer.record for answer in answers]
    candidate, child = context._best
    assert (candidate.operator, candidate.site) == (record.operator, record.site)
    assert record.success
    assert evolver.model is model
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in kept.items())
    assert record.choice.chosen.value == child.score
    learned = child.loop.model.state_dict()
    assert learned.keys() == model.state_dict().keys()
    assert all(torch.equal(learned[key], value) for key, value in model.state_dict().items())
    assert optimizer.param_groups[0]["lr"] == 0.1
    names = {id(p): name for name, p in model.named_parameters()}
    theirs = {name: child.loop.state.optimizer.state[p] for name, p in child.loop.model.named_parameters()}
    assert {names[id(p)] for group in optimizer.param_groups for p in group["params"]} == set(names.values())
    assert {names[id(p)] for p in optimizer.state} == set(names.values())
    for parameter, state in optimizer.state.items():
        assert torch.equal(state["momentum_buffer"], theirs[names[id(parameter)]]["momentum_buffer"])


def test_what_children_spend_is_counted():
    evolver = run("hill_climb", options={"children": 1, "steps": 5})
    before = evolver.state.flops_per_sample
    context = evolver.controller.proposer.context(evolver.history)
    context.child(None, 5)
    assert evolver.state.flops == 3 * before * 5 * 16
    candidate = Candidate("widen", "0", {"add": 1}, 0)
    context.child(candidate, 5)
    grown = context._child_of(candidate).loop.state.flops_per_sample
    assert grown > before
    assert evolver.state.flops == 3 * (before + grown) * 5 * 16


def test_where_a_site_lies():
    evolver = run("bandit")
    context = evolver.controller.proposer.context(evolver.history)
    depths = [context.depth(Candidate("deepen", site)) for site in ("0", "2", "5", "0:3", "*")]
    assert depths[0] == depths[3] == 0.0
    assert depths[0] < depths[1] < depths[2] < 1
    assert depths[4] is None


def test_a_site_lies_where_it_lay_before_blocks_came():
    evolver = run("bandit")
    sites = ("0", "2", "5")
    before = evolver.controller.proposer.context(evolver.history)
    depths = [before.depth(Candidate("deepen", site)) for site in sites]
    for _ in range(3):
        mutate(evolver.model, "deepen", site="5", example_inputs=evolver.train_data.example(8), strict=True)
    mutate(evolver.model, "deepen", site="2", example_inputs=evolver.train_data.example(8), strict=True)
    after = evolver.controller.proposer.context(evolver.history)
    assert [after.depth(Candidate("deepen", site)) for site in sites] == depths
    inside = [after.depth(Candidate("deepen", f"evolved.deepen_{number}")) for number in range(4)]
    assert inside == [depths[2]] * 3 + [depths[1]]


def test_a_policy_that_weighs_nothing_is_named_too_with_how_many_candidates_there_were():
    evolver = run("round_robin")
    names = [operator.name for operator in evolver.evolution.operators]
    count = sum(len(sites(evolver.model, name, example_inputs=torch.randn(8, 6))) for name in names)
    evolver.run()
    first = evolver.lineage.records[0]
    assert (first.choice.policy, first.choice.by, first.choice.others) == ("round_robin", "", [])
    assert first.choice.candidates == count == 6
    assert first.choice.chosen == Weighed(operator=first.operator, site=first.site)


def test_records_from_before_candidates_were_counted_are_read():
    chosen = {"operator": "widen", "site": "0", "value": 0.5}
    old = {"policy": "gradient", "by": "senn", "chosen": chosen, "others": [], "seconds": 0.1}
    assert Reasons.model_validate(old).candidates is None
