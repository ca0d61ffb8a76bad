"""Search algorithms by name. Importing this package files the built-in ones."""

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.algorithms.elitist import Elitist
from evolve.population.algorithms.random_search import RandomSearch

__all__ = ["Algorithm", "Elitist", "RandomSearch", "algorithms"]
