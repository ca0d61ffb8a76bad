"""An axis of an output that heeds the order of an input, as `causality.py` finds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evolve.structure.disturbance import Place, changes, marginal


@dataclass(frozen=True)
class Order:
    """An axis of an output that heeds the order of an input.

    Position q of the output sees nothing of the input behind q * stride - margin.

    Attributes:
        place: The positions of the input.
        output: Number of the output tensor.
        lead: Sizes that the output's first axis is made of, such as batch and length of (N * L, V); () for one axis.
        axes: Its axes, as many as the place has, or one for all of them.
        size: How many positions they have.
        margin: Smallest distance from a position of the input to the first output position that it reaches. 1 or more
            where an output does not see its own position, as in a PixelCNN.
        spreads: Whether an output sees more than one position.
        stride: Positions of the input for each one of the output.
        module: Whose output it is; None for those of the model itself.
    """

    place: Place
    output: int
    lead: tuple[int, ...]
    axes: tuple[int, ...]
    size: int
    margin: int = 0
    spreads: bool = False
    stride: int = 1
    module: str | None = None

    def bound(self, cut: int) -> int:
        """Returns the first position that may change where the input changes from `cut` on."""
        return -(-(cut + self.margin) // self.stride)

    def first(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> int | None:
        """Returns the first position at which two runs differ, `size` for none, None where the output is another."""
        found = self._changed(base, other)
        return None if found is None else int(found.nonzero()[0]) if bool(found.any()) else self.size

    def count(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> int:
        """Returns at how many positions two runs differ."""
        found = self._changed(base, other)
        return 0 if found is None else int(found.sum())

    def _changed(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor | None:
        if self.output >= min(len(base), len(other)):
            return None
        one, two = base[self.output], other[self.output]
        if one.shape != two.shape or (self.lead and one.shape[0] != math.prod(self.lead)):
            return None
        changed = changes(one, two)
        changed = changed.unflatten(0, self.lead) if self.lead else changed
        if changed.dim() <= max(self.axes) or math.prod(changed.shape[axis] for axis in self.axes) != self.size:
            return None
        return marginal(changed, self.axes)
