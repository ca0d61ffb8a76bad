"""One attempt at a mutation: plan, apply, carry the optimizer along, verify. Runs inside an open transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from evolve.errors import NotApplicable, RejectedError
from evolve.lineage import TensorSpec
from evolve.mutation.health import Health
from evolve.mutation.limits import Limits
from evolve.mutation.plain import json_value
from evolve.mutation.verify import Verification, first_look, reject_if
from evolve.operators import Change, MutationOperator
from evolve.operators.regroup import structure_of
from evolve.runtime.device import making_parts_for
from evolve.runtime.generators import preserved_rng
from evolve.structure.causality import leaks, orders_of
from evolve.structure.inputs import as_inputs, infer_inputs
from evolve.structure.isolation import ModuleState
from evolve.structure.probe import OutputLoss, Probe, count_parameters
from evolve.structure.sites import Site, resolve
from evolve.structure.tracing.hooks import backward_hooks
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
    loss_batches: Iterable[tuple[Any, OutputLoss]] | None,
    limits: Limits | None,
    attempt: Attempt,
    *,
    closely: bool = False,
) -> tuple[str, Change]:
    """Plans, applies and verifies inside an open transaction; returns the message and what the operator did.

    Raises:
        LookCloserError: If it has to be done again with `closely`.
    """
    inputs = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
    if inputs is not None:
        attempt.inputs = [TensorSpec(shape=list(t.shape), dtype=str(t.dtype)[6:]) for t in inputs.tensors]
    gradients = Gradients(model)
    before = replace(first_look(model, inputs, attempt.seed, loss, operator), loss_batches=loss_batches)
    attempt.flops_before = structure_of(model, before).flops({}) if operator.on_groups else before.flops
    site = _find_site(model, operator, site_name, before)
    attempt.site = site.name
    carrier = Carrier(model, optimizer)
    table = carrier.before
    with preserved_rng(attempt.seed):
        attempt.plan = _recordable(operator, _planned(model, operator, site, before))
        # Most refusals come of the plan: what the changed model is compared with is measured after it.
        orders, health, verification = orders_of(model, before), Health(model, closely=closely), None
        if inputs is not None:
            verification = Verification(model, inputs, operator, before, attempt.seed, closely=closely)
        with making_parts_for(model):
            change = _made(operator, operator.apply(model, site, attempt.plan))
    changed = changes_of(model, table, change.cuts)
    remarks = [gradients.put_back(changed)]
    attempt.params_after = count_parameters(model)
    _check_count(change, attempt.params_before, attempt.params_after)
    reject_if(health.faults(model))
    limits = limits or Limits()
    limits.check_beforehand(model, inputs, attempt.params_after)
    if carrier.optimizers:
        remarks += carrier.carry(model, site.name, change.cuts, change.redrawn if change.forget else (), change.copies)
    elif model.training:
        remarks.append(_without_optimizer(model, table, changed))
    remarks = [remark for remark in remarks if remark]
    if verification is None or inputs is None:
        remarks.insert(0, "Not measured: no probe batch is known; pass example_inputs.")
        return " ".join([change.message, *remarks]), change

    new = _new_parameters(model, operator, site, before, table)
    if new is None and not operator.on_groups:
        remarks.append("The probe batch never reaches the site: it was changed by what its layers say.")
    verification.run_again(new)
    attempt.flops_after = attempt.plan["flops"] if "flops" in attempt.plan else verification.flops_after()
    limits.check_running(model, inputs, attempt.flops_after)
    verification.compare()
    attempt.max_abs_diff = verification.max_abs_diff
    reject_if(leaks(model, inputs, orders))
    reject_if(verification.gradient_faults(new))
    return " ".join([change.message, verification.measured(), *verification.remarks, *remarks]), change


def _new_parameters(
    model: nn.Module, operator: MutationOperator, site: Site, before: Probe, table: ParameterTable
) -> dict[str, nn.Parameter] | None:
    """Returns the parameters that gradients have to reach; None where a backward pass would tell nothing."""
    new = {name: p for name, p in model.named_parameters() if p.requires_grad and p not in table}
    if not operator.on_groups:
        return new if before.reached(site) else None
    others = len(dict(model.named_parameters(remove_duplicate=False))) != len(table.by_name)
    # Other widths alone break no backward pass of autograd's own.
    return new if new or others or backward_hooks(model) else None


def _planned(model: nn.Module, operator: MutationOperator, site: Site, before: Probe) -> Any:
    """Returns what `plan` returned; what it changed though it must not is put back, or refused.

    A replay has the plan alone, and some of what the change is measured against is measured after it.
    """
    state = ModuleState(model, parameters=False)
    versions = [(name, p, p._version) for name, p in model.named_parameters() if not p.is_inference()]
    with making_parts_for(model):
        plan = operator.plan(model, site, before)
    state.restore()
    written = [name for name, parameter, version in versions if parameter._version != version]
    if written:
        raise RejectedError(
            f"`plan` of '{operator.name}' wrote to the parameter '{written[0]}'. A plan only reads the model: let "
            "`apply` make the change."
        )
    return plan


def _recordable(operator: MutationOperator, plan: Any) -> dict[str, Any]:
    """Returns the plan as a replay will read it, so that the change is made from nothing else."""
    if not isinstance(plan, dict):
        raise RejectedError(f"The plan of '{operator.name}' is a {type(plan).__name__}; a plan is a dictionary.")
    try:
        found: dict[str, Any] = json_value(plan, "plan")
    except ValueError as error:
        raise RejectedError(f"The plan of '{operator.name}' cannot be recorded: {error}") from error
    return found


def _made(operator: MutationOperator, change: Any) -> Change:
    """Returns what `apply` returned, if that is a Change."""
    if not isinstance(change, Change):
        raise RejectedError(
            f"`apply` of '{operator.name}' returned a {type(change).__name__}; it has to return an evolve Change: "
            "Change(message, parameters_added)."
        )
    return change


def _without_optimizer(model: nn.Module, before: ParameterTable, changed: Sequence[Changed]) -> str:
    """Says what an optimizer that was not passed does not know of."""
    new = sum(p.requires_grad and p not in before for p in model.parameters())
    resized = sum(change.new is change.old and change.new.requires_grad for change in changed)
    told = [f"{count} {what} parameters" for count, what in ((new, "new"), (resized, "resized")) if count]
    return f"No optimizer was passed: give yours the {' and '.join(told)}." if told else ""


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
