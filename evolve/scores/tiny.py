"""`tiny`: how much of the expressivity bottleneck new units would take away."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from evolve.scores.base import Score, halves, products, scores, solved, without
from evolve.scores.candidate_units import Reading


@scores.register("tiny")
class Tiny(Score):
    """Share of the wanted change that new units can make and present ones cannot (Verbockhaven et al. 2024).

    The loss wants what is read into to move against its slope. What the present weights can do of that is taken off
    (least squares); of the rest, the part in the span of the new units counts, whatever the units' size.
    """

    def of(self, reading: Reading) -> Tensor:
        """Returns the squared length of that part."""
        if reading.present is not None:
            reading = replace(reading, slopes=without(reading.present, reading.slopes))
        first, second = halves(reading)
        units = reading.units.flatten(1)
        return products(first, solved(units, second)) / reading.stands_for
