"""What operators share that change the size of a group of channels, units or heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis, analyse
from evolve.structure.asks import never_mentioned
from evolve.structure.axes.groups import Group, Slot
from evolve.structure.dry_run import CannotFollow, rehearse
from evolve.structure.probe import Probe, count_parameters
from evolve.structure.settings import Setting, change_settings
from evolve.structure.sites import EVERYWHERE, Site
from evolve.structure.together import that_follow, together
from evolve.surgery.attach import part_from_nested_tensors
from evolve.surgery.layout import Move, holds, layout_of, members, moved
from evolve.surgery.resize import Cut, resize

# Makes the values of new positions: called with the name of the tensor, the axis they lie along, whether the model sums
# over it, the old values and the shape of the new part.
Filler = Callable[[str, int, bool, Tensor, tuple[int, ...]], Tensor]


def groups_at(model: nn.Module, site: Site, probe: Probe) -> tuple[Analysis, list[Group]]:
    """Returns the structure of the model and the group that a site names, or all that can change for "*".

    What one integer of the forward ties to the group comes with it.

    Raises:
        NotApplicable: If there is no such group, it cannot change, or the model cannot be run.
    """
    analysis = structure_of(model, probe)
    if site.name == EVERYWHERE:
        return analysis, analysis.changeable
    return analysis, together(model, analysis, analysis.group(site.name))


def listed(model: nn.Module, analysis: Analysis, groups: Sequence[Group]) -> list[str]:
    """Returns the names of groups that can change as the model stands; of those that change together the first."""
    found = []
    for group in that_follow(model, analysis, groups):
        with suppress(NotApplicable):  # a layer like one of its own was not reached
            _with_all_in_sight(model, analysis, [Regrouping(group, ())])
            found.append(group.name)
    return found


def structure_of(model: nn.Module, probe: Probe) -> Analysis:
    """Returns the structure of the model, as the probe batch shows it.

    Raises:
        NotApplicable: If no probe batch is known.
    """
    if probe.inputs is None:
        raise NotApplicable(
            "The structure of a model shows when it runs, and no probe batch is known: pass example_inputs."
        )
    if "structure" not in probe.found:
        probe.found["structure"] = analyse(model, probe.inputs)
    structure: Analysis = probe.found["structure"]
    return structure


@dataclass(frozen=True)
class Regrouping:
    """What is to happen to one group, in one or more steps.

    Attributes:
        group: The group.
        steps: One after the other.
    """

    group: Group
    steps: Sequence[Remake]

    @property
    def size(self) -> int:
        """Members at the end."""
        return len(self.steps[-1].source)


@dataclass(frozen=True)
class Remake:
    """How the members of a group are made anew.

    Attributes:
        source: For each new member the old one it comes from; -1 for a new one.
        shares: For each new member its share of what is read; None for all of it.
        merged: Old members (from, to): what is read from the first is added to the second before the first goes.
    """

    source: list[int]
    shares: list[float] | None = None
    merged: list[tuple[int, int]] = field(default_factory=list)


def regroup_plan(model: nn.Module, analysis: Analysis, changes: Sequence[Regrouping]) -> dict[str, Any]:
    """Returns what `regroup` needs to know, as JSON values. Of several groups those that cannot follow are left out.

    Raises:
        NotApplicable: If the forward keeps sizes that cannot follow for any of them.
    """
    wanted = changes
    changes = _with_all_in_sight(model, analysis, changes)
    while True:
        try:
            settings = _rehearsed(model, analysis, changes)
            break
        except CannotFollow as error:
            at_fault = [change for change in changes if change.group.axis in error.axes]
            left = _without_those_at_fault(model, analysis, changes, at_fault)
            if not left or len(left) == len(changes):
                raise
            changes = left
    names = {change.group.axis: change.group.name for change in changes}
    readers: dict[tuple[str, int], list[str]] = {}
    for change in changes:
        for slot in change.group.slots:
            readers.setdefault((slot.name, slot.axis), []).extend([change.group.name] if slot.reads else [])
    return {
        "places": [
            {"name": name, "axis": axis, "layout": layout_of(analysis.flow.sources[name][axis], names), "reads": reads}
            for (name, axis), reads in readers.items()
        ],
        "groups": [
            {
                "name": change.group.name,
                "size": change.group.size,
                "steps": [
                    {"source": step.source, "shares": step.shares, "merged": [list(pair) for pair in step.merged]}
                    for step in change.steps
                ],
            }
            for change in changes
        ],
        "settings": [[s.module, s.attribute, s.position, s.value] for s in settings],
        "flops": analysis.flops({change.group.axis: change.size for change in changes}),
        "unseen": _unseen(model, analysis, changes),
        "left_out": [change.group.name for change in wanted if change not in changes],
    }


def _rehearsed(model: nn.Module, analysis: Analysis, changes: Sequence[Regrouping]) -> list[Setting]:
    return rehearse(model, analysis, {change.group.axis: change.size for change in changes})


def _without_those_at_fault(
    model: nn.Module, analysis: Analysis, changes: Sequence[Regrouping], at_fault: Sequence[Regrouping]
) -> list[Regrouping]:
    """Leaves out groups that cannot follow even alone, first of those at the place where it was seen."""

    def follows(change: Regrouping) -> bool:
        try:
            _rehearsed(model, analysis, [change])
        except CannotFollow:
            return False
        return True

    if len(changes) == 1:
        return []
    alone = [change for change in at_fault if not follows(change)]
    alone = alone or [change for change in changes if change not in at_fault and not follows(change)]
    return [change for change in changes if change not in (alone or at_fault)]


def _with_all_in_sight(model: nn.Module, analysis: Analysis, changes: Sequence[Regrouping]) -> Sequence[Regrouping]:
    """Leaves out groups that lie in a layer beside which there is one like it that no run uses.

    That one is another way through the forward (an expert, a branch), and would have to follow, unless no code of the
    model mentions it.

    Raises:
        NotApplicable: If nothing is left.
    """
    modules = dict(model.named_modules(remove_duplicate=False)) if analysis.unreached else {}
    places = [(owner, key) for owner, _, key in (name.rpartition(".") for name in analysis.unreached)]
    unused = {owner for owner in dict(places) if never_mentioned(model, owner)}
    unreached = [(modules[owner], key, owner) for owner, key in places if owner not in unused]

    def like(slot: Slot) -> str | None:
        owner, _, key = slot.name.rpartition(".")
        for module, own, name in unreached:
            if own == key and type(module) is type(modules[owner]):
                here, there = (getattr(each, key, None) for each in (module, modules[owner]))
                if isinstance(here, Tensor) and isinstance(there, Tensor) and here.shape == there.shape:
                    return name
        return None

    others = {change.group.name: next(filter(None, map(like, change.group.slots)), None) for change in changes}
    left = [change for change in changes if others[change.group.name] is None]
    if not left:
        first = changes[0].group.name
        raise NotApplicable(
            f"The probe batch never runs '{others[first]}', which is like a layer of '{first}' and may have to change "
            "with it: pass example_inputs that run it, or take it out of the model if nothing does."
        )
    return left


def _unseen(model: nn.Module, analysis: Analysis, changes: Sequence[Regrouping]) -> list[str]:
    """Returns parameters that no run uses and that have an axis of a size that changes: they may belong to it."""
    sizes = {change.group.size for change in changes}
    return [name for name in analysis.unreached if sizes & set(model.get_parameter(name).shape)]


def regroup(model: nn.Module, plan: Mapping[str, Any], fill: Filler | None = None) -> tuple[int, list[Cut]]:
    """Makes the members of groups anew, all groups at once, and changes the settings that follow.

    Args:
        model: The model.
        plan: From `regroup_plan`.
        fill: Gives the values of new positions; zeros if None.

    Returns:
        The parameters that were added, and the cuts that were made, for the optimizer to follow.
    """
    before = count_parameters(model)
    sizes = {group["name"]: group["size"] for group in plan["groups"]}
    cuts = []
    for number in range(len(plan["groups"][0]["steps"])):
        moves = {group["name"]: _Moves(group["steps"][number]) for group in plan["groups"]}
        shared = any(move.shared is not move.plain for move in moves.values())
        cuts += [_cut(place, moves, sizes, fill, shared=shared) for place in plan["places"]]
        sizes = {name: len(move.plain.source) for name, move in moves.items()}
    resize(model, cuts)
    change_settings(model, [Setting(*setting) for setting in plan["settings"]])
    part_from_nested_tensors(model)
    return count_parameters(model) - before, cuts


class _Moves:
    """A planned step of a group as tensors, with and without its shares."""

    def __init__(self, step: Mapping[str, Any]) -> None:
        self.plain = Move(torch.tensor(step["source"]))
        shares = step["shares"]
        self.shared = (
            self.plain if shares is None else Move(self.plain.source, torch.tensor(shares, dtype=torch.float64))
        )
        self.merges = bool(step["merged"])
        self.merged = torch.tensor(step["merged"]).view(-1, 2)


def _cut(
    place: Mapping[str, Any],
    moves: Mapping[str, _Moves],
    sizes: Mapping[str, int],
    fill: Filler | None,
    *,
    shared: bool,
) -> Cut:
    name, axis, layout, readers = place["name"], place["axis"], place["layout"], place["reads"]
    read = moved(layout, sizes, lambda group: moves[group].shared if group in readers else moves[group].plain)
    made = read
    if shared:
        made = moved(layout, sizes, lambda group: moves[group].plain if group in readers else moves[group].shared)
    merged: list[tuple[Tensor, Tensor]] = []
    joined: list[tuple[Tensor, Tensor]] = []
    for group, move in moves.items():
        if move.merges and holds(layout, group):
            one, other = members(layout, group, sizes)[move.merged.T]
            (merged if group in readers else joined).append((one.flatten(), other.flatten()))
    # Who reads a copy takes a share of it; the gradient that comes back to its makers is that share of the old one.
    return Cut(
        name,
        axis,
        read.source,
        values=read.factors,
        gradients=made.factors,
        merged=merged,
        joined=joined,
        fill=None if fill is None else partial(fill, name, axis, bool(readers)),
    )


def taken_out(plan: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns the members that a plan of one step takes out of each group."""
    kept = {group["name"]: (group["size"], set(group["steps"][0]["source"])) for group in plan["groups"]}
    return {name: [member for member in range(size) if member not in left] for name, (size, left) in kept.items()}


def told(plan: Mapping[str, Any]) -> str:
    """Returns what a plan does to its groups, for a message."""
    told = _growth(plan)
    if plan["left_out"]:
        told += f", without {_names(plan['left_out'])}, which cannot follow,"
    if plan["unseen"]:
        told += f"; the probe batch never runs {_names(plan['unseen'])}, which may have to follow"
    return told


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _growth(plan: Mapping[str, Any]) -> str:
    first = plan["groups"][0]
    if len(plan["groups"]) > 1:
        return f"{len(plan['groups'])} groups in {len(plan['places'])} places"
    size = len(first["steps"][-1]["source"])
    return f"'{first['name']}' from {first['size']} to {size} in {len(plan['places'])} places"
