"""Asynchronous successive halving promotes the best of each rung."""

import random

import pytest

from evolve.population.halving import Halving
from evolve.population.individual import Individual


def tell(halving, each, value, rung=0):
    halving.tell(Individual(each, values=None if value is None else (float(value),), rung=rung))


def test_one_in_three_is_promoted_the_best_first():
    halving = Halving(factor=3, rungs=2)
    promoted = []
    for each, value in enumerate([5, 9, 1, 7, 8, 2]):
        tell(halving, each, value)
        promoted.append(halving.promote(set()))
        if promoted[-1] is not None:
            tell(halving, promoted[-1], value + 10, rung=1)
    assert promoted == [None, None, 1, None, None, 4]


def test_higher_rungs_come_first():
    halving = Halving(factor=2, rungs=2)
    for each in range(4):
        tell(halving, each, each)
    for each in (3, 2):
        tell(halving, each, 10 + each, rung=1)
    tell(halving, 4, 100)
    tell(halving, 5, 0)
    assert halving.promote(set()) == 3  # to rung 2
    assert halving.promote({3}) == 4  # to rung 1
    tell(halving, 3, 20, rung=2)
    assert halving.promote({4}) is None  # there is no rung 3


def test_who_failed_or_is_out_is_not_promoted():
    halving = Halving(factor=3)
    for each in range(9):
        tell(halving, each, each)
    assert halving.promote({8}) == 7
    tell(halving, 8, None)
    assert halving.promote(set()) == 7
    assert 8 not in halving.waiting()


def test_what_was_found_later_does_not_change_a_rung():
    halving = Halving(factor=3)
    for each in range(3):
        tell(halving, each, each)
    tell(halving, 0, 100)
    assert halving.promote(set()) == 2


@pytest.mark.parametrize("seed", range(5))
def test_who_was_let_go_is_never_promoted(seed):
    chance, halving = random.Random(seed), Halving(factor=3, rungs=2)
    gone, rungs = set(), dict.fromkeys(range(200), 0)
    for each in range(200):
        tell(halving, each, chance.random())
        while (promoted := halving.promote(set())) is not None:
            assert promoted in halving.waiting()
            assert promoted not in gone
            rungs[promoted] += 1
            tell(halving, promoted, chance.random(), rungs[promoted])
        gone |= {*range(each + 1)} - halving.waiting()
    assert sum(rungs.values()) > 60
    assert max(rungs.values()) == 2
    assert len(halving.waiting()) < 150


def test_training_is_some_times_longer_at_each_rung():
    halving = Halving(factor=3)
    assert [halving.times(rung) for rung in range(3)] == [1, 2, 6]
