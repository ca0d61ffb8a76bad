"""`sensli`: the squared gradient of the would-be weights, as the operator would draw them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from evolve.scores.base import Score, halves, products, scores
from evolve.scores.candidate_units import Addition, Reading

_DRAWS = 4


@scores.register("sensli")
class SensLI(Score):
    """Sensitivity of the loss to the insertion (Kreis, Herberg, Köhne, Schiela and Herzog 2023).

    Input weights are not looked for, but drawn: what is to be expected of them is the mean of a few draws.
    """

    turned = False
    adds_up = True

    def of(self, reading: Reading) -> Tensor:
        """Returns the squared norm of the slope."""
        return products(*halves(reading))

    def value(self, added: Addition) -> float:
        """Returns the mean gain of a few draws."""
        if added.directions is None:
            return super().value(added)
        norm = added.directions.norm(dim=1, keepdim=True)
        gains = []
        for _ in range(_DRAWS):
            drawn = torch.nn.functional.normalize(torch.randn_like(added.directions), dim=1)
            gains.append(super().value(replace(added, directions=drawn * norm)))
        return sum(gains) / len(gains)
