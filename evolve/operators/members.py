"""What the members of a group hold: their weights by place, and which of them are copies of others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evolve.operators.slots import SlotIndex, SlotPositions
from evolve.structure.analysis import Analysis
from evolve.structure.axes.groups import Group


class Tensors:
    """The parameters and buffers of a model by name, which of them are scales of a BatchNorm, and who lies where."""

    def __init__(self, model: nn.Module, analysis: Analysis) -> None:
        self.places = SlotIndex(analysis)
        self.parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.all = {**dict(model.named_buffers()), **self.parameters}
        norms = (name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.scales = {f"{name}.weight" for name in norms} & self.parameters.keys()
        self._squares: dict[tuple[str, int], Tensor] = {}

    def squares(self, name: str, axis: int) -> Tensor:
        """Returns the sum of squares of each slice along an axis; many groups can lie in one."""
        if (name, axis) not in self._squares:
            tensor = self.all[name].detach()
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            self._squares[name, axis] = _squares(tensor, axis).double().cpu()
        return self._squares[name, axis]


class Members:
    """What the members of a group hold, one by one."""

    def __init__(self, held: Tensors, group: Group) -> None:
        self.held, self.group = held, group
        self.places = held.places.of(group)

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def size(self) -> int:
        """How many members there are."""
        return self.group.size

    def matrices(self) -> list[tuple[SlotPositions, Tensor]]:
        """Returns the weights of the group; its vectors where it has nothing else."""
        found = [
            (place, self.held.parameters[place.name]) for place in self.places if place.name in self.held.parameters
        ]
        return [(place, tensor) for place, tensor in found if tensor.dim() > 1] or found

    def redundant(self) -> list[int]:
        """Returns the members without which the function is the same: copies, and those that nobody reads."""
        copies = self.copies()
        if self.group.mixed or self.group.statistic:
            return sorted(copies)
        read = torch.zeros(self.group.size, dtype=torch.bool)
        for place in self.places:
            if place.reads:
                read |= place.members(self.held.squares(place.name, place.axis)).ne(0).any(dim=1)
        return sorted({*copies, *read.logical_not().nonzero().flatten().tolist()})

    def copies(self) -> dict[int, int]:
        """Returns the members that are made by the same weights as an earlier one, and which one that is."""
        size = self.group.size
        if self.group.mixed or all(place.reads for place in self.places):
            return {}
        if self.group.statistic:  # under a mean over the group only one of two equal halves may go, as a whole
            halves = {position: position - size // 2 for position in range(size // 2, size)}
            return halves if size % 2 == 0 and self._equal(halves) == halves else {}
        found: dict[int, int] = {}
        runs = self._alike()
        while runs:  # more than once only where members that are not equal share a number by chance
            equal = self._equal({member: run[0] for run in runs for member in run[1:]})
            found |= equal
            rest = [[member for member in run[1:] if member not in equal] for run in runs]
            runs = [run for run in rest if len(run) > 1]
        return found

    def _alike(self) -> list[list[int]]:
        """Returns runs of members that may be copies of one another, by a number that equal members share."""
        makers = [place for place in self.places if not place.reads]
        matrices = [place for place in makers if self.held.all[place.name].dim() > 1]  # which tell most members apart
        generator = torch.Generator().manual_seed(0)
        prints = torch.zeros(self.group.size, dtype=torch.float64)
        for place in matrices or makers:
            sums = place.members(self.held.squares(place.name, place.axis))
            prints += sums @ torch.randn(sums.shape[1], generator=generator, dtype=torch.float64)
        values, order = prints.sort(stable=True)
        members, near = order.tolist(), values.diff() <= 1e-6 * prints.abs().max()
        runs: list[list[int]] = []
        for position in near.nonzero().flatten().tolist():
            if not runs or runs[-1][-1] != members[position]:
                runs.append([members[position]])
            runs[-1].append(members[position + 1])
        return [sorted(run) for run in runs]

    def _equal(self, pairs: Mapping[int, int]) -> dict[int, int]:
        """Returns those of the pairs of members that are made by equal weights, element for element."""
        if not pairs:
            return {}
        one, other = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
        equal = torch.ones(len(pairs), dtype=torch.bool)
        for place in self.places:
            if not place.reads:
                tensor = self.held.all[place.name]
                rows = tensor.movedim(place.axis, 0)
                sides = [rows[place.index[side].to(tensor.device)] for side in (one, other)]
                equal &= (sides[0] == sides[1]).flatten(1).all(dim=1).cpu()
        return {copy: original for (copy, original), same in zip(pairs.items(), equal.tolist(), strict=True) if same}


def _squares(tensor: Tensor, axis: int) -> Tensor:
    """Returns the sum of squares over all axes but one."""
    if axis == 0:
        norms: Tensor = torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), dim=1)
        return norms.square()
    rows = tensor.reshape(tensor.shape[:axis].numel(), -1)  # whole rows are added up much faster than columns
    return rows.square().sum(dim=0).view(tensor.shape[axis], -1).sum(dim=1)
