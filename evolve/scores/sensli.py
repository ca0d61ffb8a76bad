"""`sensli`: the squared gradient of the would-be weights, as the operator would draw them."""

from __future__ import annotations

from torch import Tensor

from evolve.scores.addition import Reading
from evolve.scores.base import Score, halves, scores


@scores.register("sensli")
class SensLI(Score):
    """Sensitivity of the loss to the insertion (Kreis, Herberg, Köhne, Schiela and Herzog 2023).

    The cheapest: input weights are taken as they are drawn.
    """

    name = "sensli"
    turned = False
    adds_up = True

    def of(self, reading: Reading) -> Tensor:
        """Returns the squared norm of the slope."""
        first, second = halves(reading)
        return 4 * (first * second).sum()
