"""Which channels, units and heads of a model can change together, and where each of them is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from evolve.structure.axes.algebra import Axis, MismatchError, unify
from evolve.structure.axes.flow import Flow


@dataclass(frozen=True)
class Slot:
    """A place where a group is kept.

    Attributes:
        name: Parameter or buffer.
        axis: Its axis that the group lies in.
        reads: Whether the model sums over the axis here (the input side of a layer), so that a copy of a position needs
            a share of its weight; elsewhere a copy is a copy.
    """

    name: str
    axis: int
    reads: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Positions that can only change together: the channels between layers, the hidden units of an MLP, heads.

    Attributes:
        name: Site name: the module that makes them first, with a number behind a colon where it makes several groups.
        size: How many.
        axis: The axis that stands for them.
        slots: Every place where they are kept.
        statistic: Why only whole copies of all of them keep the function ("" where that is not so).
        mixed: Why no copy of one of them keeps the function ("" where that is not so).
        fixed: Why they cannot change at all ("" where they can).
    """

    name: str
    size: int
    axis: Axis
    slots: tuple[Slot, ...]
    statistic: str = ""
    mixed: str = ""
    fixed: str = ""

    @property
    def readers(self) -> list[Slot]:
        """The slots at the input side of layers."""
        return [slot for slot in self.slots if slot.reads]


def find_groups(model: nn.Module, flow: Flow, *, gradients: bool = False) -> list[Group]:
    """Returns the groups of a model whose runs have been followed, in the order of its parameters.

    Args:
        model: The model.
        flow: What the runs showed.
        gradients: Whether the model runs only with gradients on, as one does whose forward differentiates.
    """
    why = "in the forward and in a backward pass inside it, or by tied weights" if gradients else "tied weights"
    _heed_modules(model, flow)
    parameters = dict(model.named_parameters())
    order = {name: position for position, name in enumerate((*parameters, *dict(model.named_buffers())))}
    leaves = _Leaves()
    readings, others = _readings(flow, leaves)
    slots: dict[Axis, list[Slot]] = defaultdict(list)
    for name, axes in flow.sources.items():
        for position, axis in enumerate(axes):
            for leaf in leaves.of(axis):
                place = (name, position)
                reads = place in readings[leaf]
                if reads and place in others[leaf]:
                    leaf.mark("mixed", f"'{name}' is both read from and written with along it ({why})")
                slots[leaf].append(Slot(name, position, reads))
    for leaf, found in slots.items():
        if all(slot.reads or slot.name not in parameters for slot in found):
            leaf.mark("fixed", "no parameter makes it")
        elif not any(slot.reads for slot in found):
            leaf.mark("mixed", "no layer reads it")
    names = _names(slots, {name: name.rpartition(".")[0] for name in order})
    groups = [
        Group(
            names[leaf],
            leaf.size,
            leaf,
            tuple(sorted(found, key=lambda slot: order.get(slot.name, 0))),
            leaf.marks.get("statistic", ""),
            leaf.marks.get("mixed", ""),
            leaf.marks.get("fixed", ""),
        )
        for leaf, found in slots.items()
    ]
    return sorted(groups, key=lambda group: min(order.get(slot.name, 0) for slot in group.slots))


def _heed_modules(model: nn.Module, flow: Flow) -> None:  # noqa: PLR0912 - one for each kind of module
    """What PyTorch's own modules demand beyond what the run shows."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            for key in module._parameters:
                for axis in flow.sources.get(prefix + key, ()):
                    for leaf in axis.leaves():
                        leaf.marks["fixed"] = "a recurrent layer"  # says more than what the operations met with
        elif isinstance(module, torch.jit.ScriptModule):
            for key in (*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))):
                for axis in flow.sources.get(prefix + key, ()):
                    axis.mark("fixed", "a ScriptModule, whose code cannot be changed, keeps it")
        elif isinstance(module, ParametrizationList):
            for key, buffer in module.named_buffers():
                for axis in flow.sources.get(prefix + key, ()) if buffer.dim() > 1 else ():
                    axis.mark("fixed", "a parametrization computes a weight from it")
        elif isinstance(module, nn.MultiheadAttention):
            # It asserts that its width is heads x head width: both sides of the output projection change together.
            for weight in ("out_proj.weight", "q_proj_weight"):
                axes = flow.sources.get(prefix + weight)
                if not axes:
                    continue
                try:
                    unify(*axes)
                except MismatchError:
                    for axis in axes:
                        axis.mark("fixed", "nn.MultiheadAttention")


def _readings(  # noqa: PLR0912 - one for each way in which a weight can be at work
    flow: Flow, leaves: _Leaves
) -> tuple[Mapping[Axis, set[tuple[str, int]]], Mapping[Axis, set[tuple[str, int]]]]:
    """For each plain axis: the parameter axes that are summed over, and those that are used in another way."""
    origins = {id(axis): (name, k) for name, axes in flow.sources.items() for k, axis in enumerate(axes)}
    within: dict[Axis, set[tuple[str, int]]] = defaultdict(set)
    for name, axes in flow.sources.items():
        for position, axis in enumerate(axes):
            for leaf in leaves.of(axis):
                within[leaf].add((name, position))
    summed: dict[Axis, set[tuple[str, int]]] = defaultdict(set)
    plain: dict[Axis, set[tuple[str, int]]] = defaultdict(set)
    for use in flow.uses:
        direct = origins.get(id(use.axis))
        found = summed if use.contracted else plain
        for factors in use.weight:
            if direct is not None and direct[0] in factors:  # a parameter as it is
                for leaf in leaves.of(use.axis):
                    found[leaf].add(direct)
                continue
            for leaf in leaves.of(use.axis):
                places = {place for place in within[leaf] if place[0] in factors}
                if not use.contracted:
                    plain[leaf] |= places
                elif len(places) == 1:
                    summed[leaf] |= places
                elif not places:
                    leaf.mark("mixed", "it is summed over with weights that are computed from others")
                else:
                    one = min(places)  # a product of weights is scaled by scaling one of them
                    same = {place for place in places if place[0] == one[0]}
                    if len(same) > 1:
                        leaf.mark("mixed", f"'{one[0]}' has it on several axes at once")
                    summed[leaf].add(one)
    return summed, plain


class _Leaves:
    """The plain parts of axes, each once; many parameters share an axis that holds dozens.

    Axes must not be unified any more while it lives.
    """

    def __init__(self) -> None:
        self._known: dict[Axis, list[Axis]] = {}

    def of(self, axis: Axis) -> list[Axis]:
        whole = axis.resolved()
        if whole not in self._known:
            self._known[whole] = list(dict.fromkeys(whole.leaves()))
        return self._known[whole]


def _names(slots: Mapping[Axis, list[Slot]], owners: Mapping[str, str]) -> dict[Axis, str]:
    """Names each group after the first module that makes it."""
    taken: dict[str, int] = defaultdict(int)
    names = {}
    changeable_first = sorted(slots.items(), key=lambda item: ("fixed" in item[0].marks, all(s.reads for s in item[1])))
    for leaf, found in changeable_first:
        makers = [slot for slot in found if not slot.reads] or found
        inside = [slot for slot in makers if owners.get(slot.name, "")] or makers
        owner = owners.get(inside[0].name, "")
        number = taken[owner]
        taken[owner] += 1
        names[leaf] = f"{owner}:{number}" if number else owner
    return names
