"""`gradmax`: the squared gradient of those who would read the best new units."""

from __future__ import annotations

from torch import Tensor

from evolve.scores.base import Score, halves, products, scores
from evolve.scores.candidate_units import Reading


@scores.register("gradmax")
class GradMax(Score):
    """Largest squared norm of the gradient of the reading weights (Evci et al. 2022).

    It is what a step of plain gradient descent takes off the loss through the new weights, per unit of learning rate.
    """

    adds_up = True

    def of(self, reading: Reading) -> Tensor:
        """Returns the squared norm of the slope."""
        return products(*halves(reading))
