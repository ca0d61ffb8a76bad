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
from pydantic import ValidationError
from torch import nn

from evolve.errors import EvolveError, MutationError, NotApplicable, RejectedError, described, did_you_mean, text_of
from evolve.lineage import Record, Status
from evolve.mutation.attempt import Attempt, carry_out
from evolve.mutation.health import LookCloserError
from evolve.mutation.limits import Limits
from evolve.mutation.recording import applied, check_call, no_exit, opened, refused
from evolve.mutation.verify import first_look
from evolve.operators import Change, MutationOperator, operators
from evolve.runtime.exclusive import exclusive
from evolve.runtime.generators import preserved_rng
from evolve.runtime.memory import free_memory, memory_in_use, out_of_memory
from evolve.structure.inputs import as_inputs, infer_inputs
from evolve.structure.probe import OutputLoss, count_parameters
from evolve.structure.unworkable import refuse_unworkable
from evolve.surgery.optimizer import Optimizers, as_optimizers
from evolve.surgery.resize import Cut
from evolve.surgery.transaction import Transaction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MutationResult:
    """The answer of `mutate`: unpacks as `success, message`, is true where the mutation was applied.

    Attributes:
        record: What goes into the mutation log.
        cuts: How axes of parameters and buffers were made anew, for whoever keeps tensors of the same shapes, such as
            an average of the weights.
        redrawn: Parameters, by name, that took other values as a whole, for the same.
    """

    record: Record
    cuts: Sequence[Cut] = field(default=(), repr=False)
    redrawn: Sequence[str] = field(default=(), repr=False)

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
        """One of applied, not_applicable, rejected, failed, rolled_back (memory ran out)."""
        return self.record.status

    def __repr__(self) -> str:
        return f"MutationResult({self.record!r})"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.success, self.message))

    def __bool__(self) -> bool:
        return self.success


@exclusive
def mutate(
    model: nn.Module,
    operator: str,
    *,
    site: str | None = None,
    optimizer: Optimizers | None = None,
    example_inputs: Any = None,
    seed: int | None = None,
    loss: OutputLoss | None = None,
    loss_batches: Iterable[tuple[Any, OutputLoss]] | None = None,
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
        optimizer: One or a sequence of several: their state is carried along, and new parameters join the group of
            their neighbours. An optimizer that holds another (Lookahead, SAM, Accelerate's) is passed as it is stepped.
        example_inputs: Probe batch: a tensor, a sequence of arguments or a mapping of keyword arguments. If None, one
            is made up for the model's first layer with weights.
        seed: Of everything the operator draws; drawn from torch's generator, which is left alone, if None.
        loss: Makes a scalar of the model's outputs on `example_inputs`, for operators that look at gradients
            (`widen` with init gradmax, `narrow` with criterion taylor or hessian).
        loss_batches: More batches for them (`narrow` with batches): pairs of example inputs and a loss of the outputs
            on them. Each look goes through them from the beginning.
        limits: Caps; a mutation past one is refused with the figure.
        strict: Raise where the answer would be `(False, message)`; an operator's own error as it was.
        note: `epoch`, `step`, `metrics_before`, `reason` and `choice` for the record.
        **options: The operator's options.

    Returns:
        The answer, with the record of the attempt.

    Raises:
        UnknownNameError: If no operator has this name.
        EvolveError: If an argument is none that `mutate` knows; nothing has been touched then.
        MutationError: With `strict`, if the mutation was refused.
    """
    started, moment = time.perf_counter(), datetime.now(timezone.utc)
    check_call(model, site, seed, loss, loss_batches, limits, strict)
    acting = create_operator(operator, options)
    optimizer = as_optimizers(optimizer)
    given = {**opened(acting, note), "operator": operator, "time": moment.isoformat(timespec="milliseconds")}
    model = underneath(model)
    change = Change("")
    with preserved_rng(), torch._C._DisableFuncTorch():  # inside of vmap nothing can be drawn, nor is anything changed
        drawn = int(torch.randint(2**31 - 1, (), device="cpu")) if seed is None else seed
    attempt = Attempt(site or "", drawn, count_parameters(model))
    memory_before = memory_in_use(model)
    cause: Exception | None = None

    def attempted(closely: bool = False) -> tuple[Record, Change]:
        # Tensors that are made in inference mode could never be trained.
        with torch.inference_mode(False), Transaction(model, optimizer), no_exit(operator):
            message, change = carry_out(
                model, acting, site, optimizer, example_inputs, loss, loss_batches, limits, attempt, closely=closely
            )
            return applied(given, attempt, message), change

    try:
        refuse_unworkable(model)
        try:
            record, change = attempted()
        except LookCloserError:  # everything is as before
            record, change = attempted(closely=True)
    except Exception as error:
        status, message = _answer(error)
        trace = traceback.format_exc() if status == "failed" else None
        cause = error if status == "failed" else None
        record = refused(given, attempt, status, message, trace)
    torch.clear_autocast_cache()  # a surrounding autocast goes on, with other weights
    free_memory()
    measured = {"seconds": time.perf_counter() - started, "memory_before": memory_before}
    record = record.model_copy(update={**measured, "memory_after": memory_in_use(model)})
    logger.info("%s at '%s': %s. %s", operator, record.site, record.status, record.message)
    if strict and cause is not None:
        raise cause
    if strict and not record.success:
        raise MutationError(record.message)
    return MutationResult(record.made_on(model), change.cuts, change.redrawn)


def _answer(error: Exception) -> tuple[Status, str]:
    """What an attempt that ended in an error has come to."""
    text = text_of(error)
    if out_of_memory(error):
        what = text.splitlines()[0] if text else type(error).__name__
        return "rolled_back", (
            f"Memory ran out during the mutation ({what}); everything is as before. Give evolution.limits "
            "(params, activation_bytes) so that such a mutation is refused beforehand."
        )
    if isinstance(error, NotApplicable):
        return "not_applicable", text
    if isinstance(error, RejectedError):
        return "rejected", text
    return "failed", text if isinstance(error, MutationError) else described(error)


def underneath(model: nn.Module) -> nn.Module:
    """Returns the model in a `torch.compile` wrapper, which notices the change and compiles again."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


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
                message = fault["msg"].removeprefix("Value error, ")
                lines.append(f"option '{key}': {message}. Found {ascii(fault['input'])[:80]}.")
        raise EvolveError(f"Operator '{name}': {' '.join(lines)} Its options: {', '.join(known) or 'none'}.") from error


@exclusive
def sites(model: nn.Module, operator: str, *, example_inputs: Any = None, **options: Any) -> list[str]:
    """Returns the dotted names of the submodules with parameters where an operator applies.

    Args:
        model: Any module; it is left as it was, and so are the random number generators.
        operator: Registered name.
        example_inputs: As for `mutate`.
        **options: The operator's options.

    Raises:
        UnknownNameError: If no operator has this name.
        NotApplicable: If the model cannot be run on the example inputs.
    """
    acting = create_operator(operator, options)
    model = underneath(model)
    refuse_unworkable(model)
    inputs = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
    with preserved_rng(0), no_exit(operator):  # an operator may draw while it looks
        return acting.sites(model, first_look(model, inputs, 0))
