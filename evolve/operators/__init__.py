"""Mutation operators: one file each, a small class over structure and surgery."""

from evolve.operators.attention import Attention
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.branch import Branch
from evolve.operators.deepen import Deepen
from evolve.operators.dropout import Dropout
from evolve.operators.function import Context, operator
from evolve.operators.kernel import Kernel
from evolve.operators.narrow import Narrow
from evolve.operators.remove import Remove
from evolve.operators.residual import Residual
from evolve.operators.shrink_perturb import ShrinkPerturb
from evolve.operators.stack import Stack
from evolve.operators.swap import Swap
from evolve.operators.widen import Widen

__all__ = [
    "Attention",
    "Branch",
    "Change",
    "Context",
    "Deepen",
    "Dropout",
    "Kernel",
    "MutationOperator",
    "Narrow",
    "OperatorOptions",
    "Remove",
    "Residual",
    "ShrinkPerturb",
    "Stack",
    "Swap",
    "Widen",
    "operator",
    "operators",
]
