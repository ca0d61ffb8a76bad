"""`senn`: what the natural gradient promises of new units."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from evolve.scores.base import Score, halves, products, scores, solved, without
from evolve.scores.candidate_units import Reading


@scores.register("senn")
class SENN(Score):
    """Natural expansion score, 1/2 g' F^-1 g of the reading weights (Mitchell et al. 2024).

    F is the Fisher matrix as K-FAC has it: spread of the units times spread of the slopes. The units' part that present
    ones account for is taken off before, so that nothing counts that they could do. It does not depend on how anything
    is scaled, neither the units nor what they are read into.
    """

    def of(self, reading: Reading) -> Tensor:
        """Returns the score."""
        whole = reading.units.flatten(1)
        units = whole if reading.present is None else without(reading.present, whole)
        first, second = halves(replace(reading, units=units[:, :, None]))
        inner = solved(units, second, size=whole)
        whitened = solved(reading.slopes, inner.mT).mT
        samples = int(reading.samples.max()) + 1
        places = len(units) * reading.stands_for / samples
        return products(first, whitened) * places / 2 / reading.stands_for**2
