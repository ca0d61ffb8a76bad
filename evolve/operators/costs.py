"""What a model would cost if its groups had other sizes: FLOPs, parameters, seconds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from statistics import median

from torch import nn

from evolve.errors import NotApplicable, described
from evolve.operators.regroup import Regrouping, regroup, regroup_plan
from evolve.structure.analysis import Analysis
from evolve.structure.latency import latency

_TURNS, _REPETITIONS = 3, 3  # of a measurement

Cost = Callable[[Sequence[Regrouping]], float]


def flops_cost(analysis: Analysis) -> Cost:
    """Returns what counts the FLOPs of one sample's forward pass (2 per multiply-accumulate), without a run.

    Raises:
        NotApplicable: If the model's FLOPs cannot be counted.
    """
    if not analysis.flops({}):
        raise NotApplicable("The FLOPs of this model cannot be counted. Give the target in params or seconds.")
    return lambda changes: analysis.flops({change.group.axis: change.size for change in changes})


def params_cost(model: nn.Module, analysis: Analysis) -> Cost:
    """Returns what counts the parameters, shared ones once."""
    elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
    known = [name for name in elements if name in analysis.flow.sources]
    unknown = sum(count for name, count in elements.items() if name not in analysis.flow.sources)

    def cost(changes: Sequence[Regrouping]) -> float:
        sizes = {change.group.axis: change.size for change in changes}
        return unknown + sum(math.prod(analysis.shape_of(name, sizes)) for name in known)

    return cost


def seconds_cost(model: nn.Module, analysis: Analysis) -> Cost:
    """Returns what measures a copy with other sizes: the seconds of a forward pass over those of the model.

    Both are measured in turns, so that a machine that is slow for a while is slow for both; the median of some turns.
    """

    def seconds(one: nn.Module) -> float:
        return latency(one, analysis.inputs, repetitions=_REPETITIONS, modules=False)[""]

    def cost(changes: Sequence[Regrouping]) -> float:
        changed = [change for change in changes if change.size != change.group.size]
        if not changed:
            return 1.0
        narrow = _copied(model)
        regroup(narrow, regroup_plan(model, analysis, changed))
        return median(seconds(narrow) / seconds(model) for _ in range(_TURNS))

    return cost


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a part of a model raises that cannot be copied
        raise NotApplicable(
            f"A target in seconds is measured on copies, and this model cannot be copied: {described(error)}. Give it "
            "in flops or params."
        ) from error
