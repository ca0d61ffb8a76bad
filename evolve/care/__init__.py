"""What is done for a model right after a mutation, and for its new parts while they are young."""

from evolve.care.after_mutation import grown, tend
from evolve.care.config import CareConfig, RewarmConfig
from evolve.care.new_parameters import Newborns
from evolve.care.recalibrate import recalibrate

__all__ = ["CareConfig", "Newborns", "RewarmConfig", "grown", "recalibrate", "tend"]
