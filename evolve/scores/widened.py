"""What `widen` would add: units of a group, made by its makers and read by its readers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable
from evolve.operators import operators
from evolve.operators.widen import Widen
from evolve.scores.activations import Evidence
from evolve.scores.candidate_units import ROWS, UNITS, Addition, Reading, additions
from evolve.scores.propagate import carry
from evolve.scores.windows import (
    CONVS,
    apply_units,
    every_second,
    is_layer,
    pick,
    places_of,
    present_of,
    slopes_of,
    windows_of,
)
from evolve.structure.axes.groups import Group
from evolve.structure.tracing.tape import ModuleCall, Shape, Tape


@additions.register("widen")
def widened(evidence: Evidence, site: str, options: dict[str, Any]) -> Addition:
    """Returns what a wider group would add.

    Args:
        evidence: Of the model as it stands.
        site: The group.
        options: Those of `widen`.

    Raises:
        NotApplicable: If no Linear layer or convolution makes or reads the group, or units cannot be followed there.
    """
    group = evidence.analysis.group(site)
    operator = operators.get("widen")(**options)
    assert isinstance(operator, Widen)
    count = operator.new_size(group) - group.size
    tape = evidence.analysis.tapes[0]
    makers = _layers(evidence, group, reads=False)
    readers = _layers(evidence, group, reads=True)
    if not makers or not readers:
        raise NotApplicable(f"'{site}' is not both made and read by Linear layers or convolutions without groups.")
    units = min(count, UNITS)
    drawn = {name: _drawn(evidence.model.get_submodule(name), units) for name in makers}
    widths = [weights.shape[1] for weights in drawn.values()]
    reached = _readers_reached(evidence, tape, drawn, readers, group)

    def readings(directions: Tensor | None, half: bool) -> list[Reading]:
        assert directions is not None
        parts = directions.split(widths, dim=1)
        return _readings(evidence, tape, dict(zip(drawn, parts, strict=True)), reached, half)

    each = sum(math.prod(places_of(*_written(evidence, name))[1:]) * drawn[name].shape[1] for name in makers)
    params = sum(widths)
    for name, (_, features) in reached.items():
        outputs = _outputs(evidence.model.get_submodule(name))
        params += features * outputs
        each += math.prod(places_of(*_written(evidence, name))[1:]) * features * outputs
    return Addition(readings, torch.cat(list(drawn.values()), dim=1), count, count * params, 2 * count * each)


Reached = dict[
    str, tuple[Tensor, int]
]  # for each reader: the places it is looked at, and the values of a unit it reads


def _readers_reached(
    evidence: Evidence, tape: Tape, drawn: dict[str, Tensor], readers: list[str], group: Group
) -> Reached:
    """Returns the readers to which new units can be followed."""
    carried = carry(tape, _starts(evidence, tape, {n: weights[:1] for n, weights in drawn.items()}, 8))
    found: Reached = {}
    for name in readers:
        values = carried.get(_call(tape, name).inputs[0])
        if values is None:
            continue
        layer, given = _written(evidence, name)
        taps = math.prod(layer.kernel_size) if isinstance(layer, CONVS) else values.shape[-1]
        found[name] = pick(places_of(layer, given), ROWS), int(taps)
    if not found:
        raise NotApplicable(f"New units of '{group.name}' cannot be followed to where they would be read.")
    return found


def _readings(
    evidence: Evidence, tape: Tape, directions: dict[str, Tensor], reached: Reached, half: bool
) -> list[Reading]:
    carried = carry(tape, _starts(evidence, tape, directions, 2 if half else 1))
    units = len(next(iter(directions.values())))
    found = []
    for name, (at, _) in reached.items():
        layer, given = _written(evidence, name)
        seen = evidence.at(name)
        assert seen.slope is not None
        rows, near = every_second(at) if half else (slice(None), at)
        fresh = windows_of(layer, carried[_call(tape, name).inputs[0]], near, units)
        present = None if half else present_of(layer, seen.taken, at)
        stands_for = math.prod(places_of(layer, given)) / len(at)
        found.append(Reading(fresh, slopes_of(layer, seen.slope, at[rows]), present, at[rows][:, 0], stands_for))
    return found


def _starts(evidence: Evidence, tape: Tape, directions: dict[str, Tensor], every: int) -> dict[Any, Tensor]:
    """Returns what new units give where they are made, for one in so many samples."""
    return {
        _call(tape, name).outputs[0]: apply_units(
            evidence.model.get_submodule(name), evidence.at(name).taken[::every], weights
        )
        for name, weights in directions.items()
    }


def _layers(evidence: Evidence, group: Group, *, reads: bool) -> list[str]:
    """Returns the layers whose weights make the group, or read it."""
    names = []
    for slot in group.slots:
        owner, _, key = slot.name.rpartition(".")
        module = evidence.model.get_submodule(owner)
        axis = 1 if reads else 0
        if (
            key == "weight"
            and slot.reads == reads
            and slot.axis == axis
            and is_layer(module)
            and owner in evidence.seen
        ):
            names.append(owner)
    return names


def _written(evidence: Evidence, name: str) -> tuple[nn.Module, Shape]:
    return evidence.model.get_submodule(name), tuple(evidence.at(name).given.shape)


def _call(tape: Tape, name: str) -> ModuleCall:
    return next(call for call in tape.calls if call.module == name)


def _outputs(layer: nn.Module) -> int:
    return len(layer.weight)  # type: ignore[arg-type]


def _drawn(layer: nn.Module, units: int) -> Tensor:
    """Random input weights, as large as the present units'."""
    present = layer.weight.detach().flatten(1).float()  # type: ignore[operator]
    fresh = torch.randn(units, present.shape[1]).to(present)
    return fresh.mul_(present.norm(dim=1).mean() / fresh.norm(dim=1, keepdim=True))
