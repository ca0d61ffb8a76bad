"""Finds out what can be known of a model without training it: costs, what can change, what cannot and why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from evolve.errors import EvolveError, NotApplicable
from evolve.lineage import Record
from evolve.mutation.api import create_operator
from evolve.operators import operators
from evolve.report.facts import GroupFacts, Inspection, ModuleFacts, OperatorFacts, PinFacts, PlaceFacts, Widening
from evolve.runtime.device import devices_of
from evolve.runtime.generators import preserved_rng
from evolve.structure.analysis import Analysis, analyse
from evolve.structure.axes.groups import Group
from evolve.structure.inputs import Inputs, example_of, infer_inputs
from evolve.structure.latency import latency
from evolve.structure.probe import Probe, probe
from evolve.structure.sites import STORE
from evolve.structure.tracing.tape import Shape

logger = logging.getLogger(__name__)


def inspect_model(
    model: nn.Module,
    name: str,
    *,
    shapes: Sequence[Shape] = (),
    operator: str | None = None,
    measure: bool = False,
    records: Sequence[Record] = (),
) -> Inspection:
    """Returns what can be known of a model; it is left as it was.

    Args:
        model: The model; on `meta`, an operator that looks at values finds no sites.
        name: What to call it.
        shapes: Shapes of its arguments, batch first; made up for its first layer with weights if there are none.
        operator: Look for the sites of this operator alone.
        measure: Measure latencies.
        records: The mutations that made it.

    Raises:
        UnknownNameError: If there is no such operator.
        NotApplicable: If the model does not run on such inputs.
    """
    inner = getattr(model, "_orig_mod", None)  # a compiled model is looked at underneath
    model = inner if isinstance(inner, nn.Module) else model
    names = [operator] if operator is not None else operators.names()
    for one in names:
        operators.get(one)  # an unknown name is reported before the work starts
    inputs = Inputs(tuple(example_of(model, shape) for shape in shapes)) if shapes else infer_inputs(model)
    if inputs is None:
        raise NotApplicable(f"No input is known that a {type(model).__name__} runs on.")
    seen = _look(model, inputs)
    analysis = analyse(model, inputs)
    seconds = latency(model, inputs) if measure else {}
    tensors = [*model.parameters(), *model.buffers()]
    return Inspection(
        version=1,
        model=name,
        device=", ".join(map(str, devices_of(model))) or "cpu",
        dtype=str(next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)).removeprefix("torch."),
        inputs=[tuple(tensor.shape) for tensor in inputs.tensors],
        modules=_modules(model, analysis, seconds),
        groups=[_group(analysis, group) for group in analysis.changeable],
        pins=[PinFacts(g.name, g.size, g.fixed, _places(analysis, g)) for g in analysis.groups if g.fixed],
        unreached=analysis.unreached,
        operators=[_operator(model, one, seen) for one in names],
        mutations=[record.model_dump(mode="json") for record in records],
    )


def _look(model: nn.Module, inputs: Inputs) -> Probe:
    try:
        return probe(model, inputs)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise NotApplicable(f"The model fails on inputs of shape {shapes}: {type(error).__name__}: {error}") from error


def _modules(model: nn.Module, analysis: Analysis, seconds: dict[str, float]) -> list[ModuleFacts]:
    calls: dict[str, list[Any]] = {}
    for tape in analysis.tapes:  # what is called in train mode alone has shapes, but costs nothing in eval mode
        for call in tape.calls:
            calls.setdefault(call.module, []).append((call, tape.training))
    known: dict[str, ModuleFacts] = {}
    for name, module in reversed(list(model.named_modules())):
        found, cost = calls.get(name, []), analysis.costs[name]
        children = [known[key] for key in (f"{name}.{child}".lstrip(".") for child in module._modules) if key in known]
        counted = not any(not training for _, training in found)
        first = found[0][0] if found else None
        known[name] = ModuleFacts(
            name=name,
            class_name=type(module).__name__,
            calls=sum(not training for _, training in found),
            inputs=[value.shape for value in first.inputs] if first else [],
            outputs=[value.shape for value in first.outputs] if first else [],
            parameters=cost.parameters,
            flops=sum(child.flops for child in children) if counted else cost.flops,
            activation_bytes=sum(child.activation_bytes for child in children) if counted else cost.activation_bytes,
            latency_ms=_latency(name, seconds, children),
            inserted=[f"{STORE}.{link.name}" for link in getattr(module, "_evolve_links", ())],
        )
    return list(reversed(known.values()))


def _latency(name: str, seconds: dict[str, float], children: Sequence[ModuleFacts]) -> float | None:
    if name in seconds:
        return seconds[name] * 1e3
    measured = [child.latency_ms for child in children if child.latency_ms is not None]
    return sum(measured) if measured else None


def _group(analysis: Analysis, group: Group) -> GroupFacts:
    first = group.slots[0]
    axis = analysis.flow.sources[first.name][first.axis]
    whole = axis.kind == "product" and all(part.kind == "plain" for part in axis.parts)
    inner = axis.size // group.size if whole else 1
    widening: Widening = "none" if group.mixed else "whole_copies" if group.statistic else "any_copy"
    return GroupFacts(group.name, group.size, inner, widening, group.mixed or group.statistic, _places(analysis, group))


def _places(analysis: Analysis, group: Group) -> list[PlaceFacts]:
    sources = analysis.flow.sources
    return [PlaceFacts(s.name, s.axis, sources[s.name][s.axis].size, s.reads) for s in group.slots]


def _operator(model: nn.Module, name: str, seen: Probe) -> OperatorFacts:
    try:
        acting = create_operator(name, {})
    except EvolveError as error:  # it has options without a default
        return OperatorFacts(name, "depends on options", [], str(error))
    try:
        with preserved_rng(0):
            return OperatorFacts(name, acting.preserves, acting.sites(model, seen), "")
    except NotApplicable as error:
        return OperatorFacts(name, acting.preserves, [], str(error))
    except Exception as error:  # a plugin may raise anything; the rest is still worth showing
        logger.debug("%s fails on its search for sites.", name, exc_info=True)
        return OperatorFacts(name, acting.preserves, [], f"It fails: {type(error).__name__}: {error}")
