"""What operators share that change the size of a group of channels, units or heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis, analyse
from evolve.structure.groups import Group
from evolve.structure.probe import Probe
from evolve.structure.rehearsal import Setting, change_settings, rehearse
from evolve.structure.sites import EVERYWHERE, Site
from evolve.surgery.layout import blocks, layout_of, length
from evolve.surgery.resize import Cut, Fill, block_positions, resize

# Makes the values of new members: called with the old values, the shape of the new ones and the axis they lie along.
Members = Callable[[Tensor, tuple[int, ...], int], Tensor]


def groups_at(model: nn.Module, site: Site, probe: Probe) -> tuple[Analysis, list[Group]]:
    """Returns the structure of the model and the group that a site names, or all that can change for "*".

    Raises:
        NotApplicable: If there is no such group, it cannot change, or the model cannot be run.
    """
    analysis = structure_of(model, probe)
    return analysis, analysis.changeable if site.name == EVERYWHERE else [analysis.group(site.name)]


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


@dataclass(frozen=True)
class Regrouping:
    """What is to happen to one group.

    Attributes:
        group: The group.
        source: For each new position the old one it comes from; -1 for a new one.
        shares: For each new position its share of what is read; None for all of it.
        merged: Old positions (from, to): what is read from the first is added to the second before the first goes.
    """

    group: Group
    source: list[int]
    shares: list[float] | None = None
    merged: list[tuple[int, int]] = field(default_factory=list)


def regroup_plan(model: nn.Module, analysis: Analysis, changes: Sequence[Regrouping]) -> dict[str, Any]:
    """Returns what `regroup` needs to know, as JSON values.

    Raises:
        NotApplicable: If the forward keeps sizes that cannot follow.
    """
    settings = rehearse(model, analysis, {change.group.axis: len(change.source) for change in changes})
    names = {change.group.axis: change.group.name for change in changes}
    places = dict.fromkeys((slot.name, slot.axis) for change in changes for slot in change.group.slots)
    return {
        "axes": [[name, axis, layout_of(analysis.flow.sources[name][axis], names)] for name, axis in places],
        "groups": [
            {
                "name": change.group.name,
                "size": change.group.size,
                "source": change.source,
                "shares": change.shares,
                "merged": [list(pair) for pair in change.merged],
                "read": [[slot.name, slot.axis] for slot in change.group.readers],
            }
            for change in changes
        ],
        "settings": [[s.module, s.attribute, s.position, s.value] for s in settings],
    }


def regroup(model: nn.Module, plan: Mapping[str, Any], fill: Mapping[bool, Members]) -> tuple[int, list[Cut]]:
    """Changes the sizes of groups everywhere, one group after the other, and the settings that follow.

    Args:
        model: The model.
        plan: From `regroup_plan`.
        fill: Values of new positions, where a group is written (False) and where it is read (True).

    Returns:
        The parameters that were added, and the cuts that were made, for the optimizer to follow.
    """
    before = sum(parameter.numel() for parameter in model.parameters())
    sizes = {group["name"]: group["size"] for group in plan["groups"]}
    cuts = []
    for group in plan["groups"]:
        read = {(name, axis) for name, axis in group["read"]}
        for name, axis, layout in plan["axes"]:
            starts, inner = blocks(layout, group["name"], sizes)
            if starts:
                place = Place(name, axis, length(layout, sizes), starts, inner, (name, axis) in read)
                cut = _cut(place, group)
                resize(model, [cut], _spread(place, fill.get(place.reads, _none)))
                cuts.append(cut)
        sizes[group["name"]] = len(group["source"])
    change_settings(model, [Setting(*setting) for setting in plan["settings"]])
    return sum(parameter.numel() for parameter in model.parameters()) - before, cuts


@dataclass(frozen=True)
class Place:
    """Where a group lies in one axis: member i is the `inner` positions from `start + i * inner` on, for each start."""

    name: str
    axis: int
    length: int
    starts: list[int]
    inner: int
    reads: bool


def places_of(analysis: Analysis, group: Group) -> list[Place]:
    """Returns where a group lies as the model stands."""
    found = []
    for slot in group.slots:
        layout = layout_of(analysis.flow.sources[slot.name][slot.axis], {group.axis: group.name})
        sizes = {group.name: group.size}
        starts, inner = blocks(layout, group.name, sizes)
        found.append(Place(slot.name, slot.axis, length(layout, sizes), starts, inner, slot.reads))
    return found


def _cut(place: Place, group: Mapping[str, Any]) -> Cut:
    source, member = block_positions(place.length, place.starts, place.inner, group["size"], group["source"])
    factors = None
    if group["shares"] is not None:
        shares = torch.tensor([*group["shares"], 1.0], dtype=torch.float64)
        factors = shares[member]  # 1 outside of the group
    # Who reads a copy takes a share of it; the gradient that comes back to its makers is that share of the old one.
    return Cut(
        place.name,
        place.axis,
        source,
        values=factors if place.reads else None,
        gradients=None if place.reads else factors,
        merged=_spelled(place, group["merged"]) if place.reads and group["merged"] else None,
    )


def _spread(place: Place, members: Members) -> Fill:
    """New members lie at the end of each block: shows them to `members` as an axis of their own."""

    def fill(old: Tensor, shape: tuple[int, ...]) -> Tensor:
        count, axis = len(place.starts), place.axis
        apart = (*shape[:axis], count, shape[axis] // (count * place.inner), place.inner, *shape[axis + 1 :])
        return members(old, apart, axis + 1).reshape(shape)

    return fill


def _none(old: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    return old.new_zeros(shape)


def _spelled(place: Place, pairs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.arange(place.inner)
    sides = []
    for side in (0, 1):
        members = torch.tensor([pair[side] for pair in pairs]).unsqueeze(1) * place.inner + offsets
        sides.append(torch.cat([members.flatten() + start for start in place.starts]))
    return sides[0], sides[1]


def told(plan: Mapping[str, Any]) -> str:
    """Returns what a plan does to its groups, for a message."""
    first = plan["groups"][0]
    if len(plan["groups"]) > 1:
        return f"{len(plan['groups'])} groups in {len(plan['axes'])} places"
    return f"'{first['name']}' from {first['size']} to {len(first['source'])} in {len(plan['axes'])} places"
