"""A search algorithm in a module that imports what it has no need of."""

import torch  # noqa: F401

from evolve.population.algorithms import RandomSearch


class WithTorch(RandomSearch):
    pass
