"""The contracts of mutation operators and of search algorithms, as tests that plugin authors run on their own."""

from evolve.testing.algorithms import check_algorithm
from evolve.testing.contract import check_on, check_operator, variants
from evolve.testing.zoo import ZOO, Subject

__all__ = ["ZOO", "Subject", "check_algorithm", "check_on", "check_operator", "variants"]
