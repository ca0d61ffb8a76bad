"""Search algorithms by name. Importing this package files the built-in ones."""

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.algorithms.elitist import Elitist
from evolve.population.algorithms.local_search import LocalSearch
from evolve.population.algorithms.map_elites import MapElites
from evolve.population.algorithms.mu_plus_lambda import MuPlusLambda
from evolve.population.algorithms.nsga2 import Nsga2
from evolve.population.algorithms.population_based import PopulationBased
from evolve.population.algorithms.random_search import RandomSearch
from evolve.population.algorithms.regularized import Regularized
from evolve.population.algorithms.surrogate import Surrogate
from evolve.population.algorithms.trunk import Trunk

__all__ = [
    "Algorithm",
    "Elitist",
    "LocalSearch",
    "MapElites",
    "MuPlusLambda",
    "Nsga2",
    "PopulationBased",
    "RandomSearch",
    "Regularized",
    "Surrogate",
    "Trunk",
    "algorithms",
]
