"""How long a run is, and how much of it is over: epochs, optimizer steps, seconds or FLOPs. Knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from evolve.errors import EvolveError

Unit = Literal["epochs", "steps", "seconds", "flops"]
UNITS: tuple[Unit, ...] = get_args(Unit)

# A backward pass computes the gradients of inputs and of weights: about twice the forward pass.
FORWARD_AND_BACKWARD = 3
# The seconds of a step are not known beforehand, so schedules that count ticks get thousandths of such a run.
_TICKS_OF_SECONDS = 1000


class Spent(NamedTuple):
    """What a run has used up.

    Attributes:
        epochs: Passes over the training data, broken ones as fractions.
        steps: Optimizer steps.
        seconds: Wall time of training, evaluating and mutating.
        flops: FLOPs of training steps.
    """

    epochs: float
    steps: int
    seconds: float
    flops: int


@dataclass(frozen=True)
class Budget:
    """How long a run is.

    Attributes:
        unit: What is counted.
        amount: How many of it; greater than 0.
    """

    unit: Unit
    amount: float

    def progress(self, spent: Spent) -> float:
        """Returns which part of the budget is spent, from 0 to 1."""
        share: float = getattr(spent, self.unit) / self.amount
        return min(1.0, share)

    def epochs_left(self, spent: Spent, epoch_flops: float) -> float:
        """Returns how many more epochs the rest of the budget pays for, of the model as it is.

        Args:
            spent: What the run has used up; not nothing.
            epoch_flops: FLOPs of an epoch of the model as it is.
        """
        prices = {
            "epochs": 1.0,
            "steps": spent.steps / spent.epochs,
            "seconds": spent.seconds / spent.epochs,
            "flops": epoch_flops,
        }
        return (self.amount - float(getattr(spent, self.unit))) / prices[self.unit]

    def ticks(self, epoch_steps: int, step_flops: float) -> int:
        """Returns the length of the run in ticks: what a learning rate schedule counts.

        A tick is an optimizer step. Where FLOPs are the budget it is a step of the model as it is at the start; where
        seconds are, a thousandth of the run.

        Args:
            epoch_steps: Optimizer steps of an epoch.
            step_flops: FLOPs of an optimizer step at the start.

        Raises:
            EvolveError: If FLOPs are the budget and a step has none.
        """
        if self.unit == "flops":
            if not step_flops:
                raise EvolveError(
                    f"A budget of {self} needs a model whose FLOPs can be counted; none were found in a forward pass "
                    "of the probe batch. Give training.epochs, steps or seconds."
                )
            return math.ceil(self.amount / step_flops)
        lengths = {"epochs": self.amount * epoch_steps, "steps": self.amount, "seconds": _TICKS_OF_SECONDS}
        return math.ceil(lengths[self.unit])

    def __str__(self) -> str:
        if self.unit == "flops":
            return f"{self.amount:g} FLOPs"
        return f"{self.amount:,g} {self.unit if self.amount != 1 else self.unit.removesuffix('s')}"


def whole(count: float) -> int:
    """Returns how many whole ones there are: `floor`, but 2.9999999999999996 of a division that rounds are 3."""
    return math.floor(count * (1 + 1e-12))
