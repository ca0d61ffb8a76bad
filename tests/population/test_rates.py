"""How often each operator is drawn."""

import random
from collections import Counter

import pytest

from evolve.population.individual import Edit, Individual
from evolve.population.rates import Rates

EDITS = [Edit("widen", place) for place in "abcdefgh"] + [Edit("deepen", "a"), Edit("kernel", "a")]


def child(operator, value):
    return Individual(1, parents=(0,), edits=(Edit(operator),), values=(value,))


PARENT = Individual(0, values=(1.0,))


def test_operators_are_drawn_equally_however_many_places_they_have():
    chance, rates = random.Random(0), Rates()
    drawn = Counter(rates.draw(EDITS, chance).operator for _ in range(3000))
    assert all(abs(count - 1000) < 100 for count in drawn.values())
    places = Counter(
        edit.where for edit in (rates.draw(EDITS, chance) for _ in range(3000)) if edit.operator == "widen"
    )
    assert set(places) == set("abcdefgh")


def test_what_pays_is_drawn_more_often_and_nothing_dies_out():
    rates = Rates(adaptive=True)
    assert rates.shares(["widen", "deepen", "kernel"]) == pytest.approx(
        dict.fromkeys(["widen", "deepen", "kernel"], 1 / 3)
    )
    for _ in range(100):
        rates.learn(child("widen", 2.0), PARENT)
        rates.learn(child("deepen", 0.0), PARENT)
        rates.learn(child("kernel", 1.0), PARENT)  # no better is no pay
    shares = rates.shares(["widen", "deepen", "kernel"])
    assert shares["widen"] == pytest.approx(1 - 2 * 0.25 / 3, abs=1e-3)
    assert shares["deepen"] == pytest.approx(0.25 / 3, abs=1e-3)
    assert sum(shares.values()) == pytest.approx(1)
    drawn = Counter(rates.draw(EDITS, random.Random(1)).operator for _ in range(1))
    assert sum(drawn.values()) == 1


def test_it_forgets():
    rates = Rates(adaptive=True)
    for operator, other in (("widen", "deepen"), ("deepen", "widen")):
        for _ in range(50):
            rates.learn(child(operator, 2.0), PARENT)
            rates.learn(child(other, 0.0), PARENT)
    shares = rates.shares(["widen", "deepen"])
    assert shares["deepen"] > 0.8


def test_unless_adaptive_nothing_changes():
    rates = Rates()
    for _ in range(50):
        rates.learn(child("widen", 2.0), PARENT)
    assert rates.shares(["widen", "deepen"]) == {"widen": 0.5, "deepen": 0.5}


def test_who_has_no_parent_tells_nothing():
    rates = Rates(adaptive=True)
    rates.learn(child("widen", 2.0), None)
    assert rates.shares(["widen", "deepen"]) == {"widen": 0.5, "deepen": 0.5}
