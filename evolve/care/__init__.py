"""What is done for a model right after a mutation, and for its new parts while they are young."""

from evolve.care.after import WeightAverage, after_mutation, grown
from evolve.care.config import CareConfig, RewarmConfig, SparsityConfig
from evolve.care.new_parameters import NewParameters
from evolve.care.recalibrate import recalibrate
from evolve.care.sparsity import GroupSparsity

__all__ = [
    "CareConfig",
    "GroupSparsity",
    "NewParameters",
    "RewarmConfig",
    "SparsityConfig",
    "WeightAverage",
    "after_mutation",
    "grown",
    "recalibrate",
]
