"""What each search algorithm decides."""

import math

import pytest

from evolve.population.algorithms import algorithms
from evolve.population.algorithms.map_elites import quantiles
from evolve.population.individual import Edit, Individual
from evolve.population.objectives import crowding_distances, preferred
from evolve.testing.toy_spaces import Growing, Letters

WORDS = ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"]


def made(name, space=None, **options):
    return algorithms.get(name)(space or Letters(), 0, **options)


def individual(each, *values, parents=(), code=None):
    return Individual(each, parents, code=code or WORDS[each % 4], values=values or None, evaluations=bool(values))


def tell(algorithm, each, *values, **more):
    found = individual(each, *values, **more)
    found.key = algorithm.space.key(found.code) or ""
    algorithm.remember(found)
    algorithm.tell(found)


@pytest.mark.parametrize(("name", "left"), [("elitist", {1, 3}), ("regularized", {2, 3})])
def test_who_goes(name, left):
    algorithm = made(name, population=2)
    for each, value in enumerate([1.0, 9.0, 3.0, 5.0]):
        tell(algorithm, each, value)
    assert set(algorithm.living()) == left
    tell(algorithm, 3)  # trained longer, it failed
    assert set(algorithm.living()) == left - {3}


def test_who_was_aged_out_stays_out():
    algorithm = made("regularized", population=2)
    for each, value in enumerate([1.0, 9.0, 3.0]):
        tell(algorithm, each, value)
    tell(algorithm, 0, 99.0)  # evaluated once more at the end
    assert set(algorithm.living()) == {1, 2}


def test_as_published_a_structure_may_come_again():
    algorithm = made("regularized", population=1, as_published=True)
    tell(algorithm, 0, 1.0)
    algorithm.begun = 1
    proposals = [algorithm.ask() for _ in range(200)]
    assert all(each.known and each.parents == (0,) for each in proposals)
    assert len({each.code for each in proposals}) == 24


def test_tournaments_prefer_the_best():
    algorithm = made("elitist", population=4, tournament=4)
    for each, value in enumerate([1.0, 9.0, 3.0, 5.0]):
        tell(algorithm, each, value)
    algorithm.begun = 4
    assert {algorithm.ask().parents for _ in range(10)} == {(1,)}


def test_local_search_goes_on_from_the_first_that_is_better_and_begins_anew():
    algorithm = made("local_search")
    tell(algorithm, 0, 1.0, code="aaaaaaaa")
    for each in range(1, 22):  # the first two letters may change places
        proposal = algorithm.ask()
        assert proposal.parents == (0,)
        tell(algorithm, each, 0.5, parents=(0,), code=proposal.code)
    tell(algorithm, 1, 0.9, parents=(0,))  # an evaluation once more moves nothing
    assert algorithm.ask().parents == ()
    tell(algorithm, 25, 0.1, code="dddddddd")
    assert algorithm.ask().parents == (25,)
    tell(algorithm, 26, 0.9, parents=(3,))  # a child of the first climb came late
    assert algorithm.ask().parents == (25,)
    tell(algorithm, 27, 2.0, parents=(3,), code="ddddddcc")  # this one beats all
    assert algorithm.ask().parents == (27,)


def test_generations_wait_for_their_last_child():
    algorithm = made("mu_plus_lambda", population=2, children=3)
    assert algorithm.ask().parents == algorithm.ask().parents == ()
    assert algorithm.ask() is None
    tell(algorithm, 0, 1.0)
    assert algorithm.ask() is None
    tell(algorithm, 1, 2.0)
    assert all(algorithm.ask().parents for _ in range(3))
    assert algorithm.ask() is None
    tell(algorithm, 2, 3.0)
    tell(algorithm, 3)
    assert set(algorithm.living()) == {0, 1, 2}
    tell(algorithm, 4, 0.0)
    assert set(algorithm.living()) == {1, 2}


def test_two_are_crossed_where_they_can_be():
    algorithm = made("mu_plus_lambda", population=4, crossover=1.0)
    for _ in range(4):
        algorithm.ask()
    for each in range(4):
        tell(algorithm, each, float(each))
    pairs = [algorithm.ask() for _ in range(10)]
    assert any(len(each.parents) == 2 and "crossed" in each.why for each in pairs)
    for each in pairs:
        letters = {WORDS[parent][0] for parent in each.parents}
        assert sum(letter not in letters for letter in each.code) <= 1  # one edit besides


def test_crowding():
    assert crowding_distances([(0.0, 4.0), (1.0, 3.0), (4.0, 0.0)]) == [math.inf, 2.0, math.inf]
    values = [(0.0, 4.0), (1.0, 3.0), (1.5, 2.9), (4.0, 0.0), (0.0, 0.0)]
    order = preferred([individual(each, *value) for each, value in enumerate(values)])
    assert order[:2] == [0, 3]
    assert order[2:] == [2, 1, 4]  # the dominated one last


def test_nsga2_keeps_the_front():
    algorithm = made("nsga2", population=3)
    for each, value in enumerate([(0.0, 4.0), (4.0, 0.0), (1.0, 1.0), (0.5, 0.5), (2.0, 2.0)]):
        tell(algorithm, each, *value)
    assert set(algorithm.living()) == {0, 1, 4}


def test_every_cell_keeps_its_best():
    algorithm = made("map_elites", cells=2)
    for each in range(10):
        tell(algorithm, each, float(each), code="aaaaaaaa" if each % 2 else "cccccccc")
    assert set(algorithm.living()) == {8, 9}
    tell(algorithm, 9)
    assert set(algorithm.living()) == {8}


def test_cells_over_the_other_objectives():
    algorithm = made("map_elites", over="objectives", cells=5)
    for each in range(10):
        tell(algorithm, each, 1.0, -float(each))
    tell(algorithm, 10, 2.0, -9.0)
    assert 10 in algorithm.living()
    assert len(algorithm.elites) > 1


def test_quantiles():
    assert quantiles([3, 1, 2, 4], 2) == [3]
    assert quantiles([1, 1, 1, 1], 4) == []
    assert quantiles(list(range(100)), 4) == [25, 50, 75]


def test_members_are_trained_in_turns_and_the_worst_replaced():
    algorithm = made("population_based", Growing(), population=4)
    tell(algorithm, 0, 0.0, code={"widen a": 1})
    for _ in range(4):
        algorithm.ask()
    for each, value in enumerate([1.0, 2.0, 3.0, 4.0], start=1):
        tell(algorithm, each, value, parents=(0,), code={"widen a": each})
    child = algorithm.ask()
    assert child.parents[0] == 4
    assert child.edits[-1] == Edit("shake")
    assert set(algorithm.living()) == {0, 2, 3, 4}
    assert [algorithm.ask().again for _ in range(3)] == [2, 3, 4]  # nobody else goes while the child is out
    assert algorithm.ask() is None
    tell(algorithm, 3, 3.5, parents=(0,), code={"widen a": 3})
    tell(algorithm, 5, 5.0, parents=(4,), code={"widen a": 9})
    tell(algorithm, 2, 2.5, parents=(0,), code={"widen a": 2})
    assert algorithm.ask().parents[0] == 5
    assert [algorithm.ask().again for _ in range(2)] == [3, 5]
    assert set(algorithm.living()) == {0, 3, 4, 5}


def test_a_trunk_is_trained_on_as_long_as_its_children_and_the_best_takes_its_place():
    algorithm = made("trunk", Growing(), children=2)
    tell(algorithm, 0, 1.0, code={"widen a": 1})
    children = [algorithm.ask() for _ in range(2)]
    assert [each.parents for each in children] == [(0,), (0,)]
    assert children[0].edits != children[1].edits
    assert algorithm.ask().again == 0  # last: the children have its weights from before
    assert algorithm.ask() is None
    tell(algorithm, 0, 3.0, code={"widen a": 1})
    tell(algorithm, 1, 2.0, parents=(0,), code={"widen a": 1})  # better than the trunk was, not than it is
    assert set(algorithm.living()) == {0, 1}
    tell(algorithm, 2, parents=(0,), code={"widen b": 1})
    assert set(algorithm.living()) == {0}
    assert [algorithm.ask().parents for _ in range(2)] == [(0,), (0,)]
    assert algorithm.ask().again == 0
    tell(algorithm, 3, 4.0, parents=(0,), code={"widen a": 2})
    tell(algorithm, 4, 5.0, parents=(0,), code={"widen a": 3})
    tell(algorithm, 0, 4.0, code={"widen a": 1})
    assert set(algorithm.living()) == {0, 4}
    assert algorithm.ask().parents == (4,)


def test_a_trunk_stays_where_a_child_is_no_better():
    algorithm = made("trunk", Growing())
    tell(algorithm, 0, 1.0, code={"widen a": 1})
    assert algorithm.ask().parents == (0,)
    assert algorithm.ask().again == 0
    tell(algorithm, 1, 2.0, parents=(0,), code={"widen a": 1})
    tell(algorithm, 0, 2.0, code={"widen a": 1})
    assert algorithm.ask().parents == (0,)
