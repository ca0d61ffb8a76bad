"""Keeps optimizers right while the parameters under them change: state, groups, and optimizers inside others."""

from evolve.surgery.optimizer.carrier import Carrier, forget
from evolve.surgery.optimizer.changes import Changed, ParameterTable, changes_of
from evolve.surgery.optimizer.layers import Optimizers, as_optimizers
from evolve.surgery.optimizer.remembered import OptimizerState

__all__ = [
    "Carrier",
    "Changed",
    "OptimizerState",
    "Optimizers",
    "ParameterTable",
    "as_optimizers",
    "changes_of",
    "forget",
]
