"""One attempt at a mutation: plan, apply, carry the optimizer along, verify. Runs inside an open transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evolve.errors import NotApplicable, RejectedError
from evolve.lineage import TensorSpec
from evolve.mutation.limits import Limits
from evolve.mutation.verify import difference, gradient_faults, rounding, structure_faults, tolerance, train_outputs
from evolve.operators import Change, MutationOperator
from evolve.operators.regroup import structure_of
from evolve.runtime.generators import preserved_rng
from evolve.runtime.memory import out_of_memory
from evolve.structure.analysis import Analysis, refuse_lazy
from evolve.structure.causality import leaks, orders_of
from evolve.structure.inputs import Inputs, as_inputs, infer_inputs
from evolve.structure.probe import OutputLoss, Probe, count_parameters, probe
from evolve.structure.sites import Site, resolve
from evolve.structure.tracing.hooks import backward_hooks, global_hooks
from evolve.surgery.gradients import Gradients
from evolve.surgery.optimizer import Carrier, Changed, Optimizers, ParameterTable, changes_of


@dataclass
class Attempt:
    """What is known of an attempt so far; becomes the record, however it ends."""

    site: str
    seed: int
    params_before: int
    plan: dict[str, Any] = field(default_factory=dict)
    inputs: list[TensorSpec] | None = None
    max_abs_diff: float | None = None
    flops_before: int | None = None
    flops_after: int | None = None
    params_after: int | None = None


def carry_out(
    model: nn.Module,
    operator: MutationOperator,
    site_name: str | None,
    optimizer: Optimizers | None,
    example_inputs: Any,
    loss: OutputLoss | None,
    limits: Limits | None,
    attempt: Attempt,
) -> tuple[str, Change]:
    """Plans, applies and verifies inside an open transaction; returns the message and what the operator did."""
    inputs = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
    if inputs is not None:
        attempt.inputs = [TensorSpec(shape=list(t.shape), dtype=str(t.dtype)[6:]) for t in inputs.tensors]
    gradients = Gradients(model)
    mixed = operator.on_groups and operator.preserves != "no"
    before = first_look(model, inputs, attempt.seed, loss, plain=operator.on_groups, mixed=mixed)
    attempt.flops_before = structure_of(model, before).flops({}) if operator.on_groups else before.flops
    orders = orders_of(model, before)
    site = _find_site(model, operator, site_name, before)
    attempt.site = site.name
    still = operator.redraws and (not operator.on_groups or structure_of(model, before).drops)
    alike = operator.on_groups and _modes_alike(operator, structure_of(model, before))
    trained, train_error = _train_outputs_before(model, None if alike else inputs, attempt.seed, still)

    carrier = Carrier(model, optimizer)
    table = carrier.before
    with preserved_rng(attempt.seed):
        attempt.plan = operator.plan(model, site, before)
        change = operator.apply(model, site, attempt.plan)
    changed = changes_of(model, table, change.cuts)
    remarks = [gradients.put_back(changed)]
    attempt.params_after = count_parameters(model)
    _check_count(change, attempt.params_before, attempt.params_after)
    limits = limits or Limits()
    limits.check_beforehand(model, inputs, attempt.params_after)
    if carrier.optimizers:
        remarks += carrier.carry(model, site.name, change.cuts, change.redrawn if change.forget else ())
    elif model.training:
        remarks.append(_without_optimizer(model, table, changed))
    remarks = [remark for remark in remarks if remark]
    if inputs is None:
        remarks.insert(0, "Not measured: no probe batch is known; pass example_inputs.")
        return " ".join([change.message, *remarks]), change

    after = _second_look(model, inputs, attempt.seed, plain="flops" in attempt.plan, mixed=mixed)
    attempt.flops_after = attempt.plan.get("flops", after.flops)
    limits.check_running(model, inputs, attempt.flops_after)
    pairs = [("eval or train" if mixed else "eval", before.outputs, after.outputs)]
    if not (alike or train_error):
        pairs.append(("train", trained, train_outputs(model, inputs, attempt.seed, still=still)))
    _check_outputs(model, inputs, operator, pairs, attempt, still=still, mixed=mixed)
    _reject_if(leaks(model, inputs, orders))
    if train_error:
        remarks.insert(0, f"Train mode was not compared: the model itself fails in it ({train_error}).")
    if operator.on_groups or before.reached(site):
        fresh = {n: p for n, p in model.named_parameters() if p.requires_grad and p not in table}
        other = len(ParameterTable(model).by_name) != len(table.by_name)
        if fresh or other or backward_hooks(model):  # other widths alone break no backward of autograd's own
            _reject_if(gradient_faults(model, inputs, attempt.seed, fresh, training=not (alike or train_error)))
    else:
        remarks.append("The probe batch did not come by the site; it was changed by what its layers say.")
    return " ".join([change.message, _measured(attempt.max_abs_diff), *remarks]), change


def _without_optimizer(model: nn.Module, before: ParameterTable, changed: Sequence[Changed]) -> str:
    """Says what an optimizer that was not passed does not know of."""
    new = sum(p.requires_grad and p not in before for p in model.parameters())
    resized = sum(change.new is change.old and change.new.requires_grad for change in changed)
    told = [f"{count} {what} parameters" for count, what in ((new, "new"), (resized, "resized")) if count]
    return f"No optimizer was passed: give yours the {' and '.join(told)}." if told else ""


def _modes_alike(operator: MutationOperator, structure: Analysis) -> bool:
    """Whether one run tells of both modes: the one that mixes their statistics, or either where nothing is promised."""
    return not structure.asks_mode and not global_hooks() and (operator.redraws or not structure.drops)


def _measured(delta: float | None) -> str:
    return "The outputs changed shape and cannot be compared." if delta is None else f"max|Δ| = {delta:.3g}."


def first_look(
    model: nn.Module,
    inputs: Inputs | None,
    seed: int,
    loss: OutputLoss | None = None,
    *,
    plain: bool = False,
    mixed: bool = False,
) -> Probe:
    try:
        return probe(model, inputs, seed, loss, plain=plain, mixed=mixed)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in inputs.tensors) if inputs else ""
        fault = f"{type(error).__name__}: {error}"
        raise NotApplicable(
            f"The model fails on example inputs of shape {shapes} before any change: {fault}"
        ) from error


def _second_look(model: nn.Module, inputs: Inputs, seed: int, *, plain: bool, mixed: bool) -> Probe:
    try:
        return probe(model, inputs, seed, plain=plain, mixed=mixed)
    except Exception as error:  # whatever a user's forward makes of the change
        raise RejectedError(f"The changed model does not run: {type(error).__name__}: {error}") from error


def _train_outputs_before(model: nn.Module, inputs: Inputs | None, seed: int, still: bool) -> tuple[Any, str | None]:
    """Returns the outputs in train mode, or why there are none: the user's model may not train on this batch."""
    if inputs is None:
        return None, None
    try:
        return train_outputs(model, inputs, seed, still=still), None
    except Exception as error:
        if out_of_memory(error):
            raise
        return None, f"{type(error).__name__}: {error}"


def _find_site(model: nn.Module, operator: MutationOperator, name: str | None, seen: Probe) -> Site:
    if name is None:
        names = operator.sites(model, seen)
        if not names:
            raise NotApplicable(f"The model has no site for '{operator.name}'. Name one with site=... to see why.")
        name = operator.default_site(names)
    return resolve(model, name, groups=operator.on_groups)


def _check_count(change: Change, before: int, after: int) -> None:
    if change.params_added is not None and after - before != change.params_added:
        raise RejectedError(
            f"The operator said {change.params_added:+,} parameters; the model has {after - before:+,}."
        )


def _check_outputs(
    model: nn.Module,
    inputs: Inputs,
    operator: MutationOperator,
    pairs: list[tuple[str, Any, Any]],
    attempt: Attempt,
    *,
    still: bool,
    mixed: bool,
) -> None:
    for mode, old, new in pairs:
        if operator.preserves != "no":
            _reject_if(structure_faults(old, new))
        elif structure_faults(old, new):
            continue  # an operator that promises nothing may change what the model returns
        delta = difference(old, new)
        attempt.max_abs_diff = max(attempt.max_abs_diff or 0.0, delta.absolute)
        allowed = tolerance(old, operator.preserves)
        if allowed is not None and delta.relative > allowed:
            if operator.preserves == "exact":
                how = {"training": mode == "train", "still": still, "mixed": mixed}
                allowed = max(allowed, rounding(model, inputs, new, attempt.seed, **how))
            if delta.relative <= allowed:
                continue
            raise RejectedError(
                f"'{operator.name}' declares to preserve the function ({operator.preserves}), but in {mode} mode the "
                f"output changed by {delta.absolute:.3g}, {delta.relative:.3g} relative; allowed is {allowed:.3g}."
            )


def _reject_if(faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise RejectedError("Verification failed: " + "; ".join(faults[:3]) + more + ".")


def refuse_unworkable(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or "FullyShardedDataParallel" in name:
        raise NotApplicable(
            f"A {name} fixes its parameters when it is made. Mutate the model inside (`.module`) on every rank with "
            "the same seed, then wrap it again."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise NotApplicable("A ScriptModule cannot be changed. Mutate the Python model and script it again.")
    refuse_lazy(model)
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type == "meta":
            raise NotApplicable(
                f"'{key}' is on the meta device and has no values. Call `model.to_empty(...)` and load."
            )
