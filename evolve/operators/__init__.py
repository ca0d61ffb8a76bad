"""Mutation operators: one file each, a small class over structure and surgery."""

from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.deepen import Deepen
from evolve.operators.function import Context, operator
from evolve.operators.narrow import Narrow
from evolve.operators.residual import Residual
from evolve.operators.widen import Widen

__all__ = [
    "Change",
    "Context",
    "Deepen",
    "MutationOperator",
    "Narrow",
    "OperatorOptions",
    "Residual",
    "Widen",
    "operator",
    "operators",
]
