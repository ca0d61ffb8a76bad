"""The only front door to a change: analyse, apply, carry the optimizer along, verify, commit or roll back."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from torch import nn
from torch.optim import Optimizer

from evolve.errors import EvolveError, MutationError, NotApplicable, UnknownNameError, did_you_mean
from evolve.lineage import Record, Status, TensorSpec
from evolve.operators import Change, MutationOperator, operators
from evolve.structure.inputs import Inputs, as_inputs, infer_inputs
from evolve.structure.probe import Loss, Probe, count_parameters, probe
from evolve.structure.quiet import preserved_rng
from evolve.structure.sites import Site, resolve
from evolve.surgery.memory import free_memory, memory_in_use
from evolve.surgery.optimizer import ParameterTable, optimizer_faults, reconcile
from evolve.surgery.resize import Cut
from evolve.surgery.transaction import Transaction
from evolve.surgery.verify import difference, gradient_faults, rounding, structure_faults, tolerance, train_outputs

logger = logging.getLogger(__name__)


class Limits(BaseModel):
    """Caps that a mutation may not pass.

    Attributes:
        params: Most parameters of the model.
        flops: Most FLOPs of one forward pass of one sample (2 per multiply-accumulate).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: PositiveInt | None = None
    flops: PositiveInt | None = None


@dataclass(frozen=True)
class MutationResult:
    """The answer of `mutate`: unpacks as `success, message`, is true where the mutation was applied.

    Attributes:
        record: What goes into the mutation log.
        cuts: How axes of parameters and buffers were made anew, for whoever keeps tensors of the same shapes, such as
            an average of the weights.
    """

    record: Record
    cuts: Sequence[Cut] = ()

    @property
    def success(self) -> bool:
        """Whether the mutation was applied."""
        return self.record.success

    @property
    def message(self) -> str:
        """What was done, or why not."""
        return self.record.message

    @property
    def status(self) -> Status:
        """One of applied, not_applicable, rejected, failed."""
        return self.record.status

    def __iter__(self) -> Iterator[Any]:
        return iter((self.success, self.message))

    def __bool__(self) -> bool:
        return self.success


class _RejectedError(EvolveError):
    """A change that was made and did not keep its word."""


@dataclass
class _Attempt:
    """What is known of an attempt so far; becomes the record, however it ends."""

    site: str
    seed: int
    plan: dict[str, Any] = field(default_factory=dict)
    inputs: list[TensorSpec] | None = None
    max_abs_diff: float | None = None
    flops_before: int | None = None
    flops_after: int | None = None
    params_after: int | None = None


def mutate(
    model: nn.Module,
    operator: str,
    *,
    site: str | None = None,
    optimizer: Optimizer | None = None,
    example_inputs: Any = None,
    seed: int | None = None,
    loss: Loss | None = None,
    limits: Limits | None = None,
    strict: bool = False,
    note: Mapping[str, Any] | None = None,
    **options: Any,
) -> MutationResult:
    """Applies one mutation operator in place, or leaves everything bit for bit as it was.

    The change is verified on a probe batch in eval and train mode: same output structure and shapes, max|difference|
    within the operator's declaration, finite gradients that reach every new parameter, every trainable parameter in
    the optimizer exactly once, as many parameters as the operator said.

    Args:
        model: Any module; compiled models (`torch.compile`) are changed underneath and compile again by themselves.
        operator: Registered name, such as "residual".
        site: Dotted name of the place; the operator's default place if None.
        optimizer: Its state is carried along and new parameters join it.
        example_inputs: Probe batch: a tensor, a sequence of arguments or a mapping of keyword arguments. If None, one
            is made up for the model's first layer with weights.
        seed: Of everything the operator draws; drawn from torch's generator, which is left alone, if None.
        loss: Makes a scalar of the model's outputs on `example_inputs`, for operators that look at gradients
            (`widen` with init gradmax, `narrow` with criterion taylor).
        limits: Caps; a mutation past one is refused with the figure.
        strict: Raise where the answer would be `(False, message)`; an operator's own error as it was.
        note: `epoch`, `step`, `metrics_before` and `reason` for the record.
        **options: The operator's options.

    Returns:
        The answer, with the record of the attempt.

    Raises:
        UnknownNameError: If no operator has this name.
        EvolveError: If the operator has no such options.
        MutationError: With `strict`, if the mutation was refused.
    """
    started, moment = time.perf_counter(), datetime.now(timezone.utc)
    acting = create_operator(operator, options)
    model = _underneath(model)
    cuts: Sequence[Cut] = ()
    with preserved_rng(model):
        attempt = _Attempt(site or "", int(torch.randint(2**31 - 1, ())) if seed is None else seed)
    params_before, memory_before = count_parameters(model), memory_in_use(model)
    status: Status = "applied"
    trace = cause = None
    try:
        _refuse_unworkable(model)
        with Transaction(model, optimizer):
            message, cuts = _carry_out(model, acting, site, optimizer, example_inputs, loss, limits, attempt)
    except NotApplicable as error:
        status, message = "not_applicable", str(error)
    except _RejectedError as error:
        status, message = "rejected", str(error)
    except Exception as error:
        status, message = "failed", f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
        cause = error if strict else None
    free_memory()
    record = Record(
        time=moment.isoformat(timespec="milliseconds"),
        operator=operator,
        site=attempt.site,
        options=acting.options.model_dump(mode="json"),
        plan=attempt.plan,
        seed=attempt.seed,
        status=status,
        success=status == "applied",
        message=message,
        inputs=attempt.inputs,
        preserves=acting.preserves,
        max_abs_diff=attempt.max_abs_diff,
        params_before=params_before,
        params_after=attempt.params_after if status == "applied" else params_before,
        flops_before=attempt.flops_before,
        flops_after=attempt.flops_after if status == "applied" else attempt.flops_before,
        seconds=time.perf_counter() - started,
        memory_before=memory_before,
        memory_after=memory_in_use(model),
        traceback=trace,
        **(note or {}),
    )
    logger.info("%s at '%s': %s. %s", operator, record.site, status, message)
    if cause is not None:
        raise cause
    if strict and status != "applied":
        raise MutationError(message)
    return MutationResult(record, cuts)


def _carry_out(
    model: nn.Module,
    operator: MutationOperator,
    site_name: str | None,
    optimizer: Optimizer | None,
    example_inputs: Any,
    loss: Loss | None,
    limits: Limits | None,
    attempt: _Attempt,
) -> tuple[str, Sequence[Cut]]:
    """Plans, applies and verifies inside an open transaction; returns the message and the cuts that were made."""
    inputs = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
    if inputs is not None:
        attempt.inputs = [TensorSpec(shape=list(t.shape), dtype=str(t.dtype)[6:]) for t in inputs.tensors]
    gradients = [(parameter, parameter.grad, parameter.shape) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None  # an operator may run a backward pass; the gradients that stood here come back
    before = _first_look(model, inputs, attempt.seed, loss)
    attempt.flops_before = before.flops
    site = _find_site(model, operator, site_name, before)
    attempt.site = site.name
    trained, train_error = _train_outputs_before(model, inputs, attempt.seed, operator.redraws)

    table = ParameterTable(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer is not None else set()
    params_before = count_parameters(model)
    with preserved_rng(model, attempt.seed):
        attempt.plan = operator.plan(model, site, before)
        change = operator.apply(model, site, attempt.plan)
    for parameter, gradient, shape in gradients:
        parameter.grad = gradient if parameter.shape == shape else None
    attempt.params_after = count_parameters(model)
    _check_count(change, params_before, attempt.params_after)
    _check_limit("parameters", attempt.params_after, limits.params if limits else None)
    if optimizer is not None:
        reconcile(model, optimizer, table, site.name, change.cuts)
        _reject_if(optimizer_faults(model, optimizer, table, held))
    if inputs is None:
        _check_limit_known(limits)
        return f"{change.message} Not measured: no probe batch is known; pass example_inputs.", change.cuts

    after = _second_look(model, inputs, attempt.seed)
    attempt.flops_after = after.flops
    _check_limit("FLOPs", after.flops, limits.flops if limits else None)
    pairs = [("eval", before.outputs, after.outputs)]
    if train_error is None:
        pairs.append(("train", trained, train_outputs(model, inputs, attempt.seed, still=operator.redraws)))
    _check_outputs(model, inputs, operator, pairs, attempt)
    remarks = [f"Train mode was not compared: the model itself fails in it ({train_error})."] if train_error else []
    if before.reached(site):
        fresh = {n: p for n, p in model.named_parameters() if p.requires_grad and p not in table}
        if fresh or len(ParameterTable(model).by_name) != len(table.by_name):  # other widths alone break no backward
            _reject_if(gradient_faults(model, inputs, attempt.seed, fresh, training=train_error is None))
    else:
        remarks.append("The probe batch did not come by the site; it was changed by what its layers say.")
    delta = attempt.max_abs_diff
    measured = "The outputs changed shape and cannot be compared." if delta is None else f"max|Δ| = {delta:.3g}."
    return " ".join([change.message, measured, *remarks]), change.cuts


def _first_look(model: nn.Module, inputs: Inputs | None, seed: int, loss: Loss | None = None) -> Probe:
    try:
        return probe(model, inputs, seed, loss)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in inputs.tensors) if inputs else ""
        fault = f"{type(error).__name__}: {error}"
        raise NotApplicable(
            f"The model fails on example inputs of shape {shapes} before any change: {fault}"
        ) from error


def _second_look(model: nn.Module, inputs: Inputs, seed: int) -> Probe:
    try:
        return probe(model, inputs, seed)
    except Exception as error:  # whatever a user's forward makes of the change
        raise _RejectedError(f"The changed model does not run: {type(error).__name__}: {error}") from error


def _train_outputs_before(model: nn.Module, inputs: Inputs | None, seed: int, still: bool) -> tuple[Any, str | None]:
    """Returns the outputs in train mode, or why there are none: the user's model may not train on this batch."""
    if inputs is None:
        return None, None
    try:
        return train_outputs(model, inputs, seed, still=still), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _find_site(model: nn.Module, operator: MutationOperator, name: str | None, seen: Probe) -> Site:
    if name is None:
        names = operator.sites(model, seen)
        if not names:
            raise NotApplicable(f"The model has no site for '{operator.name}'. Name one with site=... to see why.")
        name = operator.default_site(names)
    return resolve(model, name)


def _check_count(change: Change, before: int, after: int) -> None:
    if change.params_added is not None and after - before != change.params_added:
        raise _RejectedError(
            f"The operator said {change.params_added:+,} parameters; the model has {after - before:+,}."
        )


def _check_limit(what: str, value: int | None, limit: int | None) -> None:
    if limit is not None and value is not None and value > limit:
        raise _RejectedError(f"The limit of {limit:,} {what} would be passed: the mutated model has {value:,}.")


def _check_limit_known(limits: Limits | None) -> None:
    if limits is not None and limits.flops is not None:
        raise _RejectedError("The limit on FLOPs cannot be checked without a probe batch; pass example_inputs.")


def _check_outputs(
    model: nn.Module,
    inputs: Inputs,
    operator: MutationOperator,
    pairs: list[tuple[str, Any, Any]],
    attempt: _Attempt,
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
                allowed = max(allowed, rounding(model, inputs, attempt.seed, training=mode == "train"))
            if delta.relative <= allowed:
                continue
            raise _RejectedError(
                f"'{operator.name}' declares to preserve the function ({operator.preserves}), but in {mode} mode the "
                f"output changed by {delta.absolute:.3g}, {delta.relative:.3g} relative; allowed is {allowed:.3g}."
            )


def _reject_if(faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise _RejectedError("Verification failed: " + "; ".join(faults[:3]) + more + ".")


def _underneath(model: nn.Module) -> nn.Module:
    """Returns the model in a `torch.compile` wrapper, which notices the change and compiles again."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _refuse_unworkable(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or "FullyShardedDataParallel" in name:
        raise NotApplicable(
            f"A {name} fixes its parameters when it is made. Mutate the model inside (`.module`) on every rank with "
            "the same seed, then wrap it again."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise NotApplicable("A ScriptModule cannot be changed. Mutate the Python model and script it again.")
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise NotApplicable(f"'{key}' is lazy and has no shape yet. Run the model once first.")
        if tensor.device.type == "meta":
            raise NotApplicable(
                f"'{key}' is on the meta device and has no values. Call `model.to_empty(...)` and load."
            )


def create_operator(name: str, options: Mapping[str, Any]) -> MutationOperator:
    """Returns the operator called `name` with its options checked.

    Raises:
        UnknownNameError: If there is no such operator.
        EvolveError: If an option is unknown or has a value that is not allowed.
    """
    cls = operators.get(name)
    try:
        return cls(**options)
    except ValidationError as error:
        known = list(cls.Options.model_fields)
        lines = []
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                lines.append(f"there is no option '{key}'.{did_you_mean(key, known)}")
            else:
                lines.append(f"option '{key}': {fault['msg']}. Found {fault['input']!r}.")
        raise EvolveError(f"Operator '{name}': {' '.join(lines)} Its options: {', '.join(known) or 'none'}.") from error


def sites(model: nn.Module, operator: str, *, example_inputs: Any = None, **options: Any) -> list[str]:
    """Returns the dotted names of the submodules with parameters where an operator applies.

    Args:
        model: Any module; it is left as it was.
        operator: Registered name.
        example_inputs: As for `mutate`.
        **options: The operator's options.

    Raises:
        UnknownNameError: If no operator has this name.
        NotApplicable: If the model cannot be run on the example inputs.
    """
    acting = create_operator(operator, options)
    model = _underneath(model)
    _refuse_unworkable(model)
    inputs = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
    return acting.sites(model, _first_look(model, inputs, 0))


def replay(model: nn.Module, records: Iterable[Record]) -> None:
    """Rebuilds the structure that the applied records describe on a base model; needs no data and measures nothing.

    Raises:
        UnknownNameError: If a record's operator is not registered: import the plugin first.
        EvolveError: If a record does not fit the model.
    """
    for record in records:
        if record.status != "applied":
            continue
        try:
            acting = create_operator(record.operator, record.options)
        except UnknownNameError as error:
            raise UnknownNameError(
                f"{error} Record {record.index} needs it: import or list its plugin first."
            ) from error
        try:
            with preserved_rng(model, record.seed):
                acting.apply(model, resolve(model, record.site), record.plan)
        except NotApplicable as error:
            raise EvolveError(
                f"Record {record.index} ('{record.operator}' at '{record.site}') does not fit this model: {error} "
                "Was the base model built as it was then?"
            ) from error
        if count_parameters(model) != record.params_after:
            raise EvolveError(
                f"After record {record.index} ('{record.operator}' at '{record.site}') the model should have "
                f"{record.params_after:,} parameters; it has {count_parameters(model):,}. Is the base model the same?"
            )
