"""Where children are made and trained, by name. Importing this package files the built-in executors."""

from evolve.population.executors.base import Executor, executors
from evolve.population.executors.in_process import InProcess
from evolve.population.executors.processes import Processes
from evolve.population.executors.ray import Ray

__all__ = ["Executor", "InProcess", "Processes", "Ray", "executors"]
