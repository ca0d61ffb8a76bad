"""What is sought, and who is best where that is several things."""

import math
import random

import pytest

from evolve.population.individual import Individual
from evolve.population.objectives import Objective, dominates, front, fronts


def test_values_are_better_the_larger_they_are():
    assert Objective("val_accuracy", "max").value({"val_accuracy": 0.9}) == 0.9
    assert Objective("params", "min").value({"params": 12.0}) == -12.0
    assert Objective("val_loss", "min").value({"val_loss": math.nan}) == -math.inf
    with pytest.raises(KeyError):
        Objective("flops", "min").value({"params": 12.0})


def test_dominance():
    assert dominates((1, 2), (1, 1))
    assert not dominates((1, 1), (1, 1))
    assert not dominates((2, 0), (1, 1))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fronts_against_brute_force(seed, count):
    chance = random.Random(seed)
    values = [tuple(float(chance.randrange(8)) for _ in range(count)) for _ in range(40)]
    individuals = [Individual(each, values=value) for each, value in enumerate(values)]
    chance.shuffle(individuals)
    individuals.append(Individual(99))  # one that failed
    left = dict(enumerate(values))
    for found in fronts(individuals):
        expected = {
            each
            for each, value in left.items()
            if not any(dominates(other, value) for other in left.values())
            and not any(other == value and earlier < each for earlier, other in left.items())
        }
        assert {each.id for each in found} == expected
        left = {each: value for each, value in left.items() if each not in expected}
    assert not left


def test_the_front_begins_with_the_best_by_the_first_objective():
    individuals = [Individual(0, values=(1.0, 3.0)), Individual(1, values=(2.0, 2.0)), Individual(2, values=(0.0, 0.0))]
    assert [each.id for each in front(individuals)] == [1, 0]
    assert front([Individual(0)]) == []
