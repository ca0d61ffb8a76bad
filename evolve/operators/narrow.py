"""`narrow`: fewer channels, units or heads in a group, taken out physically."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from evolve.errors import NotApplicable, NotYetApplicable
from evolve.lineage import Preserves
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.regroup import Regrouping, Remake, groups_at, listed, regroup, regroup_plan, structure_of, told
from evolve.operators.slots import SlotIndex, SlotPositions
from evolve.structure.analysis import Analysis
from evolve.structure.axes.groups import Group
from evolve.structure.probe import Probe, loss_gradients
from evolve.structure.sites import EVERYWHERE, Site

Criterion = Literal["magnitude", "taylor", "batch_norm", "redundant", "indices"]


@operators.register("narrow")
class Narrow(MutationOperator):
    """Takes channels, units or heads out of a group of coupled layers.

    Which go: those with the smallest weights (`magnitude`: L2 norm of what makes and what reads them, Li et al. 2017),
    with the smallest first-order effect on the loss (`taylor`: |sum of weight times gradient|, Molchanov et al. 2017;
    needs a `loss`), with the smallest BatchNorm scale (`batch_norm`: Liu et al. 2017), those that are named
    (`indices`), or those without which the function is the same (`redundant`: nobody reads them, or they are copies).
    What is read from a copy is added to what is read from its original, so that `narrow` undoes `widen`.
    """

    on_groups = True
    redraws = True

    class Options(OperatorOptions):
        """Options of `narrow`.

        Attributes:
            factor: New size relative to the old.
            remove: How many to take out, instead of `factor`.
            multiple_of: Round the new size up to a multiple of this.
            criterion: Which go.
            indices: Those that go, for `criterion: indices`.
        """

        factor: float | None = Field(default=None, gt=0, lt=1)
        remove: int | None = Field(default=None, ge=1)
        multiple_of: int = Field(default=1, ge=1)
        criterion: Criterion = "magnitude"
        indices: list[NonNegativeInt] | None = Field(default=None, min_length=1)

        @model_validator(mode="after")
        def _one_size(self) -> Self:
            given = [self.factor is not None, self.remove is not None, self.indices is not None]
            if sum(given) > 1:
                raise ValueError("give one of factor, remove and indices")
            if (self.criterion == "indices") != (self.indices is not None):
                raise ValueError("criterion: indices and the list of indices go together")
            if self.indices is not None and self.multiple_of > 1:
                raise ValueError("multiple_of does nothing beside indices, which already say what is left; drop it")
            return self

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """Exact for `criterion: redundant`, else not."""
        return "exact" if self.options.criterion == "redundant" else "no"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the groups of channels, units and heads with more than one member."""
        analysis = structure_of(model, probe)
        return listed(model, analysis, self._candidates(model, analysis))

    def _candidates(self, model: nn.Module, analysis: Analysis) -> list[Group]:
        found = [group for group in analysis.changeable if group.size > 1]
        if self.options.criterion == "redundant":
            held = _Tensors(model, analysis)
            found = [group for group in found if _Members(held, group).redundant()]
        return found

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles which go, and whom their readers turn to."""
        analysis, groups = groups_at(model, site, probe)
        if site.name == EVERYWHERE:
            found = self._candidates(model, analysis)
            names = set(listed(model, analysis, found))
            tied = [others for name in names if isinstance(others := analysis.together.get(name), list)]
            names = names.union(*tied)
            groups = [group for group in found if group.name in names and not group.mixed]
        if not groups:
            raise NotApplicable("No group of the model has anything to take out.")
        gradients = loss_gradients(model, probe) if self.options.criterion == "taylor" else {}
        held = _Tensors(model, analysis)
        changes = [self._narrower(_Members(held, group), gradients) for group in groups]
        return regroup_plan(model, analysis, changes)

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Cuts every tensor of the group."""
        added, cuts = regroup(model, plan)
        copies = sum(len(step["merged"]) for group in plan["groups"] for step in group["steps"])
        what = f"{told(plan)}, merging {copies} copies" if copies else told(plan)
        return Change(f"Narrowed {what} ({added:+,} parameters).", added, cuts)

    def _narrower(self, members: _Members, gradients: Mapping[str, Tensor]) -> Regrouping:
        gone = self._gone(members, gradients)
        kept = set(range(members.group.size)) - gone
        copies = members.copies()
        merged = [(position, copies[position]) for position in sorted(gone) if copies.get(position) in kept]
        return Regrouping(members.group, [Remake(sorted(kept), merged=merged)])

    def _gone(self, members: _Members, gradients: Mapping[str, Tensor]) -> set[int]:
        options, group = self.options, members.group
        if options.indices is not None:
            wrong = [index for index in options.indices if not 0 <= index < group.size]
            if wrong or len(set(options.indices)) >= group.size:
                raise NotYetApplicable(
                    f"indices={options.indices} cannot be taken out of the {group.size} of '{group.name}': "
                    + (f"there is no position {wrong[0]}." if wrong else "one has to stay.")
                )
            return set(options.indices)
        if group.size < 2:
            raise NotYetApplicable(f"'{group.name}' has one position left, which has to stay.")
        redundant = members.redundant() if options.criterion == "redundant" else []
        if options.criterion == "redundant" and not redundant:
            raise NotYetApplicable(f"'{group.name}' has no position without which the function is the same.")
        count = self._count(group, len(redundant))
        if options.criterion == "redundant":
            if len(redundant) < count:
                raise NotYetApplicable(
                    f"'{group.name}' has {len(redundant)} positions without which the function is the same; "
                    f"{count} were to go."
                )
            return set(redundant[-count:])
        scores = members.taylor(gradients) if options.criterion == "taylor" else getattr(members, options.criterion)()
        return set(scores.argsort(stable=True)[:count].tolist())

    def _count(self, group: Group, redundant: int) -> int:
        options = self.options
        if options.criterion == "redundant" and options.factor is None and options.remove is None:
            wanted = redundant
        elif options.remove is not None:
            wanted = options.remove
        else:
            wanted = group.size - max(1, round(group.size * (options.factor or 0.5)))
        if wanted >= group.size:
            raise NotYetApplicable(
                f"{wanted} cannot be taken out of the {group.size} of '{group.name}': one has to stay."
            )
        kept = -(-(group.size - wanted) // options.multiple_of) * options.multiple_of
        if kept >= group.size:
            raise NotYetApplicable(
                f"The {group.size} of '{group.name}' cannot become {kept}: rounded up to a multiple of "
                f"{options.multiple_of}, nothing is left to take out."
            )
        return group.size - int(kept)


class _Tensors:
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


class _Members:
    """What the members of a group hold, one by one."""

    def __init__(self, held: _Tensors, group: Group) -> None:
        self.held, self.group = held, group
        self.places = held.places.of(group)

    def matrices(self) -> list[tuple[SlotPositions, Tensor]]:
        """Returns the weights of the group; its vectors where it has nothing else."""
        found = [
            (place, self.held.parameters[place.name]) for place in self.places if place.name in self.held.parameters
        ]
        return [(place, tensor) for place, tensor in found if tensor.dim() > 1] or found

    def magnitude(self) -> Tensor:
        """L2 norm of each member's weights, those of each tensor scaled to a mean of 1."""
        scores = torch.zeros(self.group.size, dtype=torch.float64)
        for place, _ in self.matrices():
            norms = place.members(self.held.squares(place.name, place.axis)).sum(dim=1).sqrt()
            scores += norms / norms.mean().clamp(min=1e-12)
        return scores

    def taylor(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """First-order effect on the loss of each member's weights becoming zero."""
        pairs = [(place, tensor, gradients.get(place.name)) for place, tensor in self.matrices()]
        effects = [
            place.members(_over_rest(tensor * gradient, place.axis)).sum(dim=1).abs()
            for place, tensor, gradient in pairs
            if gradient is not None
        ]
        if not effects:
            raise NotYetApplicable(
                f"criterion: taylor needs gradients, and the loss gives no weight of '{self.group.name}' any."
            )
        return torch.stack(effects).sum(dim=0)

    def batch_norm(self) -> Tensor:
        """Mean |scale| of each member in the BatchNorms it passes through."""
        scales = [
            place.members(self.held.parameters[place.name].abs()).mean(dim=1)
            for place in self.places
            if place.name in self.held.scales
        ]
        if not scales:
            raise NotApplicable(
                f"criterion: batch_norm needs a BatchNorm with scales, and '{self.group.name}' passes through none."
            )
        return torch.stack(scales).mean(dim=0)

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


def _over_rest(tensor: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one."""
    rest = [dim for dim in range(tensor.dim()) if dim != axis]
    return tensor.sum(dim=rest, dtype=torch.promote_types(tensor.dtype, torch.float32)) if rest else tensor
