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
from evolve.operators.regroup import added_parameters, group_at, regroup, regroup_plan, structure_of
from evolve.structure.groups import Group, Slot
from evolve.structure.probe import Probe
from evolve.structure.sites import Site

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
        found = []
        for group in structure_of(model, probe).changeable:
            if group.size > 1 and (self.options.criterion != "redundant" or _redundant(model, group)[0]):
                found.append(group.name)
        return found

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles which go, and whom their readers turn to."""
        analysis, group = group_at(model, site, probe)
        gone = self._gone(model, group)
        kept = [position for position in range(group.size) if position not in gone]
        copies = {position: original for position, original in _redundant(model, group)[1].items() if position in gone}
        merged = [[position, original] for position, original in sorted(copies.items()) if original in kept]
        return regroup_plan(model, analysis, group, kept, merged=merged)

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Cuts every tensor of the group."""
        added, kept = added_parameters(model, plan), len(plan["source"])
        pairs = [(position, original) for position, original in plan["merged"]]
        cuts = regroup(model, plan, {}, merged=pairs)
        told = f", {len(pairs)} of them copies" if pairs else ""
        return Change(
            f"Narrowed '{site.name}' from {plan['size']} to {kept}{told} in {len(plan['slots'])} places "
            f"({added:+,} parameters).",
            added,
            cuts,
        )

    def _gone(self, model: nn.Module, group: Group) -> set[int]:
        options = self.options
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
        redundant = _redundant(model, group)[0] if options.criterion == "redundant" else []
        count = self._count(group, len(redundant))
        if options.criterion == "redundant":
            if len(redundant) < max(count, 1):
                raise NotApplicable(
                    f"'{group.name}' has {len(redundant)} positions without which the function is the same; "
                    f"{max(count, 1)} were to go."
                )
            return set(redundant[-count:])
        scores = _SCORES[options.criterion](model, group)
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


def _slices(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """Returns a tensor's values by member of the group, (size, values of one)."""
    rows = tensor.detach().movedim(slot.axis, 0)
    blocks = [rows[start : start + size * slot.inner].reshape(size, -1) for start in slot.starts]
    return torch.cat(blocks, dim=1)


def _magnitude(model: nn.Module, group: Group) -> Tensor:
    """Mean over the weights of each member's L2 norm, each weight's norms scaled to a mean of 1."""
    scores = torch.zeros(group.size, dtype=torch.float64)
    for slot, tensor in _matrices(model, group):
        norms = _slices(tensor, slot, group.size).double().norm(dim=1).cpu()
        scores += norms / norms.mean().clamp(min=1e-12)
    return scores


def _taylor(model: nn.Module, group: Group) -> Tensor:
    scores = torch.zeros(group.size, dtype=torch.float64)
    found = False
    for slot, tensor in _matrices(model, group):
        if tensor.grad is not None:
            found = True
            scores += _slices(tensor * tensor.grad, slot, group.size).double().sum(dim=1).abs().cpu()
    if not found:
        raise NotApplicable(
            f"criterion: taylor needs gradients, and no parameter of '{group.name}' has any. Call loss.backward() first."
        )
    return scores


def _batch_norm(model: nn.Module, group: Group) -> Tensor:
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }
    scales = [_slices(model.get_parameter(slot.name), slot, group.size) for slot in group.slots if slot.name in norms]
    if not scales:
        raise NotApplicable(f"criterion: batch_norm needs a BatchNorm, and '{group.name}' passes through none.")
    return torch.stack([scale.double().abs().mean(dim=1).cpu() for scale in scales]).mean(dim=0)


_SCORES = {"magnitude": _magnitude, "taylor": _taylor, "batch_norm": _batch_norm}


def _matrices(model: nn.Module, group: Group) -> list[tuple[Slot, Tensor]]:
    parameters = dict(model.named_parameters())
    found = [(slot, parameters[slot.name]) for slot in group.slots if slot.name in parameters]
    return [(slot, tensor) for slot, tensor in found if tensor.dim() > 1] or found


def _redundant(model: nn.Module, group: Group) -> tuple[list[int], dict[int, int]]:
    """Returns the members without which the function is the same, and of those that are copies their originals."""
    if group.mixed or group.statistic:
        return _whole_copies(model, group)
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    read = torch.zeros(group.size, dtype=torch.bool)
    made = []
    for slot in group.slots:
        values = _slices(tensors[slot.name], slot, group.size).cpu()
        if slot.reads:
            read |= values.ne(0).any(dim=1)
        else:
            made.append(values.double())
    originals = _copies(torch.cat(made, dim=1)) if made else {}
    silent = [member for member in range(group.size) if not read[member] and member not in originals]
    return sorted({*silent, *originals}), originals


def _whole_copies(model: nn.Module, group: Group) -> tuple[list[int], dict[int, int]]:
    """Under a mean over the group only the second of two equal halves may go, as a whole."""
    if group.mixed or group.size % 2:
        return [], {}
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    half = group.size // 2
    for slot in group.slots:
        values = _slices(tensors[slot.name], slot, group.size)
        if not slot.reads and not torch.equal(values[:half], values[half:]):
            return [], {}
    return list(range(half, group.size)), {position: position - half for position in range(half, group.size)}


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
