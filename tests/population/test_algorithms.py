"""Every registered search algorithm keeps its contract, under every option that makes it another."""

import pytest

from evolve.population.algorithms import algorithms
from evolve.testing import check_algorithm

VARIANTS = {
    "regularized": [{"as_published": True}],
    "mu_plus_lambda": [{"crossover": 0.5, "population": 4, "children": 7}],
    "nsga2": [{"crossover": 0.5}],
    "map_elites": [{"over": "objectives"}],
    "trunk": [{"children": 3}],
}
CASES = [(name, options) for name in algorithms.names() for options in ({}, *VARIANTS.get(name, []))]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}{options or ''}" for name, options in CASES])
def test_contract(name, options):
    check_algorithm(name, **options)
