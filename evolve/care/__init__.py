"""What is done for a model right after a mutation, and for its new parts while they are young."""

from evolve.care.after import WeightAverage, after_mutation, grown
from evolve.care.config import CareConfig, RewarmConfig
from evolve.care.new_parameters import NewParameters
from evolve.care.recalibrate import recalibrate

__all__ = ["CareConfig", "NewParameters", "RewarmConfig", "WeightAverage", "after_mutation", "grown", "recalibrate"]
