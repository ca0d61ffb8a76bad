"""Where the members of a group lie in the parameters and buffers of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evolve.structure.analysis import Analysis
from evolve.structure.axes.algebra import Axis
from evolve.structure.axes.groups import Group
from evolve.surgery.layout import positions


@dataclass(frozen=True)
class SlotPositions:
    """Where a group lies in one axis.

    Attributes:
        name: Parameter or buffer.
        axis: Its axis.
        index: Positions of each member, (members, positions of one).
        reads: Whether the model sums over the axis.
    """

    name: str
    axis: int
    index: Tensor
    reads: bool

    def members(self, positions: Tensor) -> Tensor:
        """Returns a vector along the axis by member, (members, positions of one), in float64 on the CPU."""
        return positions.double().cpu()[self.index]


class SlotIndex:
    """Where groups lie as the model stands.

    Args:
        analysis: The structure of the model.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._sources = analysis.flow.sources
        self._known: dict[Axis, dict[Axis, Tensor]] = {}

    def of(self, group: Group) -> list[SlotPositions]:
        """Returns the places of a group."""
        return [
            SlotPositions(slot.name, slot.axis, self._positions(slot.name, slot.axis)[group.axis], slot.reads)
            for slot in group.slots
        ]

    def _positions(self, name: str, axis: int) -> dict[Axis, Tensor]:
        whole = self._sources[name][axis].resolved()
        if whole not in self._known:  # an axis of a DenseNet holds dozens of groups
            self._known[whole] = positions(whole)
        return self._known[whole]
