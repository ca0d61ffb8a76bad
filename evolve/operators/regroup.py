"""What operators share that change the size of a group of channels, units or heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis, analyse
from evolve.structure.groups import Group, Slot
from evolve.structure.probe import Probe
from evolve.structure.rehearsal import Setting, change_settings, rehearse
from evolve.structure.sites import Site
from evolve.surgery.resize import Cut, Fill, block_positions, resize

# Makes the values of new members: called with the old values, the shape of the new ones and the axis they lie along.
Members = Callable[[Tensor, tuple[int, ...], int], Tensor]


def group_at(model: nn.Module, site: Site, probe: Probe) -> tuple[Analysis, Group]:
    """Returns the structure of the model and the group that a site names.

    Raises:
        NotApplicable: If there is no such group, it cannot change, or the model cannot be run.
    """
    analysis = structure_of(model, probe)
    return analysis, analysis.group(site.name)


def structure_of(model: nn.Module, probe: Probe) -> Analysis:
    """Returns the structure of the model, as the probe batch shows it.

    Raises:
        NotApplicable: If no probe batch is known.
    """
    if probe.inputs is None:
        raise NotApplicable(
            "The structure of a model shows when it runs, and no probe batch is known: pass example_inputs."
        )
    return analyse(model, probe.inputs)


def regroup_plan(
    model: nn.Module, analysis: Analysis, group: Group, source: Sequence[int], **more: Any
) -> dict[str, Any]:
    """Returns what `regroup` needs to know, as JSON values.

    Args:
        model: The model.
        analysis: Its structure.
        group: The group to change.
        source: For each new position of the group the old one it comes from; -1 for a new one.
        **more: Further values for the plan.

    Raises:
        NotApplicable: If the forward keeps sizes that cannot follow.
    """
    settings = rehearse(model, analysis, {group.axis: len(source)})
    return {
        "size": group.size,
        "source": list(source),
        "slots": [[slot.name, slot.axis, list(slot.starts), slot.inner, slot.reads] for slot in group.slots],
        "settings": [[s.module, s.attribute, s.position, s.value] for s in settings],
        **more,
    }


def slots_of(plan: Mapping[str, Any]) -> Iterator[Slot]:
    """Yields the places that a plan is about."""
    for name, axis, starts, inner, reads in plan["slots"]:
        yield Slot(name, axis, tuple(starts), inner, reads)


def regroup(
    model: nn.Module,
    plan: Mapping[str, Any],
    fill: Mapping[bool, Members],
    shares: Sequence[float] | None = None,
    merged: Sequence[tuple[int, int]] = (),
) -> list[Cut]:
    """Changes the size of a group everywhere, and the settings that follow.

    Args:
        model: The model.
        plan: From `regroup_plan`.
        fill: Values of new positions, where the group is written (False) and where it is read (True).
        shares: For each new position its share of what is read, None for all of it.
        merged: Old positions (from, to): what is read from the first is added to the second before the first goes.

    Returns:
        The cuts that were made, for the optimizer to follow.
    """
    lengths = {name: tensor.shape for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    cuts = []
    for slot in slots_of(plan):
        if slot.name not in lengths:
            raise NotApplicable(f"The model has no parameter or buffer '{slot.name}' to resize.")
        length = lengths[slot.name][slot.axis]
        source, member = block_positions(length, slot.starts, slot.inner, plan["size"], plan["source"])
        factors = None
        if shares is not None:
            factors = torch.cat([torch.tensor(shares, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])[member]
        # Who reads a copy takes a share of it; the gradient that comes back to the copy's makers is that share of the old.
        cut = Cut(
            slot.name,
            slot.axis,
            source,
            values=factors if slot.reads else None,
            gradients=None if slot.reads else factors,
            merged=_spelled(slot, merged) if slot.reads and merged else None,
        )
        resize(model, [cut], _spread(slot, fill.get(slot.reads, _none)))
        cuts.append(cut)
    change_settings(model, [Setting(*setting) for setting in plan["settings"]])
    return cuts


def _spread(slot: Slot, members: Members) -> Fill:
    """New members lie at the end of each block: shows them to `members` as an axis of their own."""

    def fill(old: Tensor, shape: tuple[int, ...]) -> Tensor:
        blocks, axis = len(slot.starts), slot.axis
        apart = (*shape[:axis], blocks, shape[axis] // (blocks * slot.inner), slot.inner, *shape[axis + 1 :])
        return members(old, apart, axis + 1).reshape(shape)

    return fill


def _none(old: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    return old.new_zeros(shape)


def _spelled(slot: Slot, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.arange(slot.inner)
    sides = []
    for side in (0, 1):
        members = torch.tensor([pair[side] for pair in pairs]).unsqueeze(1) * slot.inner + offsets
        sides.append(torch.cat([members.flatten() + start for start in slot.starts]))
    return sides[0], sides[1]


def added_parameters(model: nn.Module, plan: Mapping[str, Any]) -> int:
    """Returns how many parameters a plan adds (negative: removes), before it is carried out."""
    change = len(plan["source"]) - plan["size"]
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    before = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    for slot in slots_of(plan):
        if slot.name in shapes:
            shapes[slot.name][slot.axis] += change * slot.inner * len(slot.starts)
    return sum(torch.Size(shape).numel() - before[name] for name, shape in shapes.items())


def listed(names: Sequence[str]) -> str:
    """Returns the first names of a list for a message."""
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
