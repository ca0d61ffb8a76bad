"""The training losses of a run over its steps, kept in a few numbers. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_PER_DOUBLING = 8  # stretches between a step and its double


class LossCurve:
    """Mean training losses over stretches of steps that grow with the step, so that their logarithms are even.

    A run of a million steps takes 160 of them. What was before `restart` is forgotten, as the losses of another model.
    """

    def __init__(self) -> None:
        self._stretches: dict[int, list[float]] = {}  # steps, sum of their logarithms, sum of losses

    def add(self, step: int, loss: float) -> None:
        """Takes in the loss of a step, counted from 1."""
        place = math.log(step)
        found = self._stretches.setdefault(int(_PER_DOUBLING * place / math.log(2)), [0.0, 0.0, 0.0])
        found[0] += 1
        found[1] += place
        found[2] += loss

    def restart(self) -> None:
        """Forgets all losses so far."""
        self._stretches.clear()

    def points(self, since: float) -> list[tuple[float, float, float]]:
        """Returns the stretches whose mean lies after a step: steps in them, mean logarithm of the step, mean loss."""
        means = [(count, places / count, losses / count) for count, places, losses in self._stretches.values()]
        return [point for point in means if point[1] >= math.log(since)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the curve as JSON values."""
        return {str(place): list(found) for place, found in self._stretches.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self._stretches = {int(place): list(found) for place, found in state.items()}
