"""What is done for a model right after a mutation, and for its new parts while they are young."""

from evolve.care.config import CareConfig, RewarmConfig
from evolve.care.newborns import Newborns
from evolve.care.recalibrate import recalibrate
from evolve.care.tend import grown, tend

__all__ = ["CareConfig", "Newborns", "RewarmConfig", "grown", "recalibrate", "tend"]
