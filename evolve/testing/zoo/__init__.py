"""Small models of many kinds, on which the contract runs."""

from evolve.testing.zoo.subjects import ZOO, Subject

__all__ = ["ZOO", "Subject"]
