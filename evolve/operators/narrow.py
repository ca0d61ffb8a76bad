"""`narrow`: fewer channels, units or heads in a group, taken out physically."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, Preserves, operators
from evolve.operators.regroup import Place, Regrouping, groups_at, places_of, regroup, regroup_plan, structure_of, told
from evolve.structure.analysis import Analysis
from evolve.structure.groups import Group
from evolve.structure.probe import Probe
from evolve.structure.sites import EVERYWHERE, Site

Criterion = Literal["magnitude", "taylor", "batch_norm", "redundant", "indices"]


@operators.register("narrow")
class Narrow(MutationOperator):
    """Takes channels, units or heads out of a group of coupled layers.

    Which go: those with the smallest weights (`magnitude`: L2 norm of what makes and what reads them, Li et al. 2017),
    with the smallest first-order effect on the loss (`taylor`: |sum of weight times gradient|, Molchanov et al. 2017;
    needs gradients in the parameters, from a backward pass or a training step), with the smallest BatchNorm scale
    (`batch_norm`: Liu et al. 2017), those that are named (`indices`), or those without which the function is the same
    (`redundant`: nobody reads them, they are zero, or they are copies). What is read from a copy is added to what is
    read from its original, so that `narrow` undoes `widen`.
    """

    name = "narrow"
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
        indices: list[int] | None = Field(default=None, min_length=1)

        @model_validator(mode="after")
        def _one_size(self) -> Self:
            given = [self.factor is not None, self.remove is not None, self.indices is not None]
            if sum(given) > 1:
                raise ValueError("give one of factor, remove and indices")
            if (self.criterion == "indices") != (self.indices is not None):
                raise ValueError("criterion: indices and the list of indices go together")
            return self

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """Exact for `criterion: redundant`, else not."""
        return "exact" if self.options.criterion == "redundant" else "no"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the groups of channels, units and heads with more than one member."""
        analysis = structure_of(model, probe)
        found = [group for group in analysis.changeable if group.size > 1]
        if self.options.criterion == "redundant":
            found = [group for group in found if _Members(model, analysis, group).redundant()[0]]
        return [group.name for group in found]

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles which go, and whom their readers turn to."""
        analysis, groups = groups_at(model, site, probe)
        if site.name == EVERYWHERE:
            names = set(self.sites(model, probe))
            groups = [group for group in groups if group.name in names and not group.mixed]
        if not groups:
            raise NotApplicable("No group of the model has anything to take out.")
        return regroup_plan(model, analysis, [self._narrower(_Members(model, analysis, group)) for group in groups])

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Cuts every tensor of the group."""
        added, cuts = regroup(model, plan, {})
        copies = sum(len(group["merged"]) for group in plan["groups"])
        what = f"{told(plan)}, merging {copies} copies" if copies else told(plan)
        return Change(f"Narrowed {what} ({added:+,} parameters).", added, cuts)

    def _narrower(self, members: _Members) -> Regrouping:
        gone = self._gone(members)
        kept = [position for position in range(members.group.size) if position not in gone]
        copies = members.redundant()[1]
        merged = [(position, copies[position]) for position in sorted(gone) if copies.get(position) in kept]
        return Regrouping(members.group, kept, merged=merged)

    def _gone(self, members: _Members) -> set[int]:
        options, group = self.options, members.group
        if options.indices is not None:
            wrong = [index for index in options.indices if not 0 <= index < group.size]
            if wrong or len(set(options.indices)) >= group.size:
                raise NotApplicable(
                    f"indices={options.indices} cannot be taken out of the {group.size} of '{group.name}': "
                    + (f"there is no position {wrong[0]}." if wrong else "one has to stay.")
                )
            return set(options.indices)
        if group.size < 2:
            raise NotApplicable(f"'{group.name}' has one position left, which has to stay.")
        redundant = members.redundant()[0] if options.criterion == "redundant" else []
        count = self._count(group, len(redundant))
        if options.criterion == "redundant":
            if len(redundant) < max(count, 1):
                raise NotApplicable(
                    f"'{group.name}' has {len(redundant)} positions without which the function is the same; "
                    f"{max(count, 1)} were to go."
                )
            return set(redundant[-count:])
        scores: Tensor = getattr(members, options.criterion)()
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
            raise NotApplicable(f"{wanted} cannot be taken out of the {group.size} of '{group.name}': one has to stay.")
        kept = -(-(group.size - wanted) // options.multiple_of) * options.multiple_of
        if kept >= group.size:
            raise NotApplicable(
                f"The {group.size} of '{group.name}' cannot become {kept}: rounded up to a multiple of "
                f"{options.multiple_of}, nothing is left to take out."
            )
        return group.size - kept


class _Members:
    """What the members of a group hold, one by one."""

    def __init__(self, model: nn.Module, analysis: Analysis, group: Group) -> None:
        self.model, self.group = model, group
        self.places = places_of(analysis, group)
        self.parameters = dict(model.named_parameters())
        self.tensors = {**dict(model.named_buffers()), **self.parameters}

    def values(self, tensor: Tensor, place: Place) -> Tensor:
        """Returns a tensor's values by member, (size, values of one)."""
        rows = tensor.detach().movedim(place.axis, 0)
        size, inner = self.group.size, place.inner
        parts = [rows[start : start + size * inner].reshape(size, -1) for start in place.starts]
        return torch.cat(parts, dim=1).double().cpu()

    def matrices(self) -> list[tuple[Place, Tensor]]:
        """Returns the weights of the group; its vectors where it has nothing else."""
        found = [(place, self.parameters[place.name]) for place in self.places if place.name in self.parameters]
        return [(place, tensor) for place, tensor in found if tensor.dim() > 1] or found

    def magnitude(self) -> Tensor:
        """L2 norm of each member's weights, those of each tensor scaled to a mean of 1."""
        scores = torch.zeros(self.group.size, dtype=torch.float64)
        for place, tensor in self.matrices():
            norms = self.values(tensor, place).norm(dim=1)
            scores += norms / norms.mean().clamp(min=1e-12)
        return scores

    def taylor(self) -> Tensor:
        """First-order effect on the loss of each member's weights becoming zero."""
        pairs = [(place, tensor, tensor.grad) for place, tensor in self.matrices()]
        effects = [self.values(t * g, place).sum(dim=1).abs() for place, t, g in pairs if g is not None]
        if not effects:
            raise NotApplicable(
                f"criterion: taylor needs gradients, and no weight of '{self.group.name}' has any. Call loss.backward() "
                "before."
            )
        return torch.stack(effects).sum(dim=0)

    def batch_norm(self) -> Tensor:
        """Mean |scale| of each member in the BatchNorms it passes through."""
        norms = {
            f"{name}.weight"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        scales = [self.values(self.parameters[p.name], p).abs().mean(1) for p in self.places if p.name in norms]
        if not scales:
            raise NotApplicable(
                f"criterion: batch_norm needs a BatchNorm, and '{self.group.name}' passes through none."
            )
        return torch.stack(scales).mean(dim=0)

    def redundant(self) -> tuple[list[int], dict[int, int]]:
        """Returns the members without which the function is the same, and of those that are copies their originals."""
        size = self.group.size
        made = [self.values(self.tensors[p.name], p) for p in self.places if not p.reads]
        if self.group.mixed or not made:
            return [], {}
        rows = torch.cat(made, dim=1)
        if self.group.statistic:  # under a mean over the group only one of two equal halves may go, as a whole
            half = size // 2
            if size % 2 or not torch.equal(rows[:half], rows[half:]):
                return [], {}
            return list(range(half, size)), {position: position - half for position in range(half, size)}
        read = torch.zeros(size, dtype=torch.bool)
        for place in self.places:
            if place.reads:
                read |= self.values(self.tensors[place.name], place).ne(0).any(dim=1)
        originals = _copies(rows)
        silent = [member for member in range(size) if not read[member] and member not in originals]
        return sorted({*silent, *originals}), originals


def _copies(rows: Tensor) -> dict[int, int]:
    """Returns for each row that equals an earlier one the first such row."""
    _, kinds = torch.unique(rows, dim=0, return_inverse=True)
    first: dict[int, int] = {}
    found = {}
    for position, kind in enumerate(kinds.tolist()):
        if kind in first:
            found[position] = first[kind]
        first.setdefault(kind, position)
    return found
