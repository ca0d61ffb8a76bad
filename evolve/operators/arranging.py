"""Another order of the blocks of a container, as a part of a plan: what `stack` and `remove` share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from torch import nn

from evolve.structure.depth_settings import DepthSettings, Field, change_depth, depth_settings
from evolve.structure.gradients import without_gradients
from evolve.structure.isolation import undisturbed
from evolve.structure.probe import Probe, recorded_calls
from evolve.structure.stacks import Run, own_children, run_at
from evolve.surgery.stacking import restack

logger = logging.getLogger(__name__)

Copies = list[tuple[nn.Parameter, nn.Parameter]]


def arrangement(model: nn.Module, run: Run, order: Sequence[int], new: Sequence[int] = ()) -> dict[str, Any]:
    """Returns what `rearrange` needs to know, as JSON values.

    Args:
        model: The model.
        run: Of its blocks.
        order: For each block of the new run, the position in the old run of the block that it is, or is a copy of.
        new: Positions in `order` of those that are copies.

    Raises:
        NotApplicable: If the model's config has no words for it.
    """
    settings = depth_settings(model, run, order)
    return {
        "container": run.container,
        "first": run.first,
        "count": len(run.blocks),
        "order": list(order),
        "new": list(new),
        "counts": [list(astuple(field)) for field in settings.counts],
        "lists": [list(astuple(field)) for field in settings.lists],
    }


def rearrange(model: nn.Module, plan: Mapping[str, Any]) -> tuple[Run, Copies]:
    """Gives a container other blocks, as planned.

    Returns:
        The new run, and the parameters of copies, each with the one that it was copied from.

    Raises:
        NotApplicable: If the model has no such run, or a block cannot be copied.
    """
    run = run_at(model, plan["container"], plan["first"], plan["count"])
    copies = restack(model, run, plan["order"], plan["new"])
    settings = [tuple(Field(*field) for field in plan[key]) for key in ("counts", "lists")]
    change_depth(model, DepthSettings(*settings), run, plan["order"])
    return run_at(model, plan["container"], plan["first"], len(plan["order"])), copies


def all_run(model: nn.Module, plan: Mapping[str, Any], probe: Probe) -> bool:
    """Whether a model runs with other blocks in a container, and all of these with it; it is left as it was.

    A forward may call each block by its number.

    Args:
        model: The model.
        plan: By `arrangement`.
        probe: Of the model; without a batch nothing is tried.
    """

    def running(calls: Mapping[str, Any]) -> int:
        container = plan["container"]
        children = own_children(model.get_submodule(container))
        return sum(f"{container}.{name}".removeprefix(".") in calls for name in children)

    def run() -> bool:
        with undisturbed(model, seed=0):
            rearrange(model, plan)
            with recorded_calls(model) as calls:
                probe.inputs.run(model.eval())  # type: ignore[union-attr]
            return bool(running(calls) - before == len(plan["order"]) - plan["count"])

    before = running(probe.calls)
    if probe.inputs is None:
        return True
    try:
        return without_gradients(model, run)
    except Exception as error:  # whatever a user's forward raises
        logger.debug("%s does not run with other blocks in '%s': %s", type(model), plan["container"], error)
        return False
