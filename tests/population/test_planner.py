"""What is evaluated next, over a whole search."""

import random
from dataclasses import replace

import pytest

from evolve.errors import EvolveError
from evolve.population.algorithms import algorithms
from evolve.population.halving import Halving
from evolve.population.individual import Individual, Proposal
from evolve.population.planner import Planner, finite, updated
from evolve.testing.toy_spaces import Growing, Letters


def planner(algorithm="random", space=None, seed=0, **more):
    return Planner(algorithms.get(algorithm)(space or Letters(), seed), seed, **more)


def told(plan, job, *values, averaged=False):
    individual = replace(job.individual, code=job.individual.code or {})
    individual = updated(individual, values, job.rung, averaged) if values else replace(individual, failure="failed")
    plan.tell(individual)
    return individual


def test_a_rooted_space_waits_for_its_root():
    plan = planner(space=Growing())
    root = plan.next(0)
    assert (root.individual.id, root.proposal.parents) == (0, ())
    assert plan.next(0) is None
    told(plan, root, 1.0)
    assert plan.next(0).proposal.parents == (0,)


def test_ids_count_and_seeds_differ():
    plan = planner(again=0.5)
    jobs = [plan.next(0) for _ in range(5)]
    assert [job.individual.id for job in jobs] == [0, 1, 2, 3, 4]
    assert len({job.seed for job in jobs}) == 5
    told(plan, jobs[0], 1.0)
    assert plan.next(0.5).seed not in {job.seed for job in jobs}
    assert planner(seed=1).next(0).seed != jobs[0].seed


def test_the_last_part_goes_to_the_best_in_turns():
    plan = planner(again=0.15, best=2)
    values = [1.0, 5.0, 3.0, 4.0]
    for job in [plan.next(0) for _ in values]:
        told(plan, job, values[job.individual.id])
    chosen = []
    for _ in range(4):
        job = plan.next(0.85)
        chosen.append(job.proposal.again)
        told(plan, job, 0.0, averaged=True)
    assert chosen == [1, 3, 1, 3]
    assert plan.individuals[1].values == (5 / 3,)
    assert plan.individuals[1].evaluations == 3
    assert plan.next(1.0) is None


def test_the_race_of_the_best_narrows():
    plan = planner(again=0.5, best=4)
    for job in [plan.next(0) for _ in range(10)]:
        told(plan, job, float(job.individual.id))
    chosen = []
    for step in range(10):
        job = plan.next(0.5 + step / 20)
        chosen.append(job.proposal.again)
        told(plan, job, float(job.individual.id), averaged=True)
    assert chosen == [9, 8, 7, 9, 8, 9, 8, 9, 9, 9]  # of the best 4, 4, 4, 3, 3, 2, 2, 2, 1 and 1
    assert plan.finalists == [9, 8, 7, 6]


def test_finalists_come_before_the_lucky_and_who_fell_back_may_return():
    plan = planner(again=0.5, best=3)
    for job in [plan.next(0) for _ in range(4)]:
        told(plan, job, 10.0 - job.individual.id)
    for value in (2.0, 5.0, 0.0):  # means 6, 7 and 4
        told(plan, plan.next(0.5), value, averaged=True)
    assert plan.individuals[3].value == 7.0
    assert plan.top() == [1, 0, 2]
    told(plan, plan.next(0.9), 3.0, averaged=True)  # of the best alone: mean 17 / 3
    assert plan.next(0.95).proposal.again == 0


def test_finalists_are_chosen_anew_where_the_budget_was_raised():
    plan = planner(best=1)
    told(plan, plan.next(0), 1.0)
    told(plan, plan.next(0.9), 1.0, averaged=True)
    assert plan.finalists == [0]
    told(plan, plan.next(0.5), 2.0)
    assert plan.next(0.9).proposal.again == 1


def test_nobody_waits_for_the_last_children_and_these_may_be_among_the_best():
    plan = planner(best=1)
    first, second = plan.next(0), plan.next(0)
    told(plan, first, 1.0)
    again = plan.next(0.9)
    assert again.proposal.again == 0
    assert plan.next(0.9) is None  # the only finalist so far is out
    told(plan, second, 2.0)
    assert plan.next(0.9).proposal.again == 1
    told(plan, again, 9.0, averaged=True)
    assert plan.next(0.9) is None  # settled


def test_a_finalist_that_fails_is_left_out():
    plan = planner(best=2)
    for job in [plan.next(0) for _ in range(2)]:
        told(plan, job, 1.0)
    plan.tell(replace(plan.individuals[plan.next(0.9).proposal.again], values=None, failure="failed"))
    assert plan.next(0.9).proposal.again == 1


def test_with_several_objectives_the_front_comes_first():
    plan = planner("nsga2", best=3)
    values = [(5.0, -5.0), (4.0, -6.0), (3.0, -1.0), (4.5, -5.5)]
    for job in [plan.next(0) for _ in values]:
        told(plan, job, *values[job.individual.id])
    assert plan.top() == [0, 2, 3]
    assert replace(plan, best=1).top() == [0, 2]


def test_of_those_next_to_the_front_who_stands_alone_comes_first():
    plan = planner("nsga2", best=4)
    values = [(5.0, -1.0), (4.0, -1.5), (3.9, -1.6), (3.8, -1.55), (1.0, -1.2), (3.95, -1.58)]
    for job in [plan.next(0) for _ in values]:
        told(plan, job, *values[job.individual.id])
    assert plan.top() == [0, 1, 4, 3]  # 0 is better than all; 1 and 4 are the ends of what is left, 3 and 5 of the rest


def test_structures_are_known_by_who_had_them_first():
    plan = planner(space=Growing())
    told(plan, plan.next(0), 0.0)
    one, other = plan.next(0).individual, plan.next(0).individual
    one.key = other.key = "the same"
    assert plan.made(one) is None
    assert plan.made(other) == one.id
    assert plan.made(one) is None  # made once more, after an interruption


def test_a_space_that_is_searched_through_ends_the_search():
    class Few(Letters):
        def draw(self, chance):
            return Proposal(code=chance.choice(["aaaaaaaa", "bbbbbbbb"]))

    plan = planner(space=Few())
    first, second = plan.next(0), plan.next(0)
    assert plan.next(0) is None
    assert not plan.exhausted  # what is out may change that
    told(plan, first, 1.0)
    told(plan, second, 1.0)
    assert plan.next(0) is None
    assert plan.exhausted


def test_asking_in_vain_changes_nothing():
    plan = planner("mu_plus_lambda")
    jobs = [plan.next(0) for _ in range(10)]
    before = plan.state()
    assert plan.next(0) is None
    assert plan.state() == before
    assert len({job.individual.id for job in jobs}) == 10


def test_nothing_but_failures_ends_the_search():
    plan = planner()
    for _ in range(200):
        told(plan, plan.next(0))
    assert plan.exhausted
    assert plan.next(0) is None


def test_the_best_of_a_rung_are_trained_longer():
    plan = planner(halving=Halving(factor=3, rungs=1))
    for value in (1.0, 3.0, 2.0):
        told(plan, plan.next(0), value)
    job = plan.next(0)
    assert (job.proposal.again, job.rung) == (1, 1)
    assert plan.next(0).proposal.again is None
    told(plan, job, 4.0)
    assert plan.individuals[1].rung == 1
    assert plan.next(0).proposal.again is None


def test_living_are_parents_of_those_out_and_those_that_may_be_promoted():
    plan = planner("elitist", halving=Halving(), best=1)
    while not (job := plan.next(0)).proposal.parents:
        told(plan, job, job.individual.id + 20.0 * job.rung)
    assert {
        *job.proposal.parents,
        job.individual.id,
        *plan.algorithm.living(),
        *plan.halving.waiting(),
    } <= plan.living()


def test_halving_and_an_algorithm_that_trains_on_are_refused():
    with pytest.raises(EvolveError, match="Leave out halving"):
        planner("population_based", halving=Halving())


@pytest.mark.parametrize("seed", range(3))
def test_resumed_with_halving_and_finals(seed):
    def run(interrupted):
        chance = random.Random(seed)
        plan, out, history, decided = planner("elitist", halving=Halving(), best=3), [], [], []
        for step in range(60):
            while len(out) < 3 and (job := plan.next(len(decided) / 60)):
                state = plan.state()
                out.append(job)
                decided.append((job.individual.id, job.proposal, job.seed, job.rung))
            if not out:
                break
            job = out.pop(chance.randrange(len(out)))
            history.append(told(plan, job, *([] if chance.random() < 0.1 else [chance.random()])))
            if interrupted and step % 7 == 0:
                plan = planner("elitist", halving=Halving(), best=3)
                plan.resume(history, out, state)
        return decided

    assert run(interrupted=True) == run(interrupted=False)


def test_the_mean_of_evaluations():
    individual = Individual(0, values=(1.0, -2.0), evaluations=1, failure="x")
    found = updated(individual, [3.0, -4.0], 0, averaged=True)
    assert (found.values, found.evaluations, found.failure) == ((2.0, -3.0), 2, "")
    assert updated(found, [9.0, -9.0], 1, averaged=False).values == (9.0, -9.0)
    assert finite([1.0])
    assert not finite([1.0, float("-inf")])


def test_whose_weights_are_gone_is_no_longer_among_the_best():
    plan = planner(again=0, best=2)
    for value in range(4):
        told(plan, plan.next(0), float(value))
    assert plan.top() == [3, 2]
    plan.gone = {3}
    assert plan.top() == [2, 1]
