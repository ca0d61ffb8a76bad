"""The record of an attempt: what is given is checked before anything is touched, the record before it is kept."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from torch import nn

from evolve.errors import EvolveError, MutationError, RejectedError, did_you_mean, text_of
from evolve.lineage import Note, Preserves, Record, Status
from evolve.mutation.attempt import Attempt
from evolve.mutation.limits import Limits
from evolve.mutation.plain import json_value
from evolve.operators import MutationOperator

SEEDS = range(-(2**63), 2**64)  # what torch takes


def check_model(model: Any) -> None:
    """Checks that something is a model.

    Raises:
        EvolveError: If it is none.
    """
    if not isinstance(model, nn.Module):
        raise EvolveError(f"model: expected an nn.Module. Found {_shown(model)}. Pass the model itself.")


def as_records(records: Any) -> list[Record]:
    """Returns records that were passed, as a list.

    Raises:
        EvolveError: If they are not a sequence of records.
    """
    found = f"'{type(records).__name__}'"
    if isinstance(records, Iterable) and not isinstance(records, str | bytes | Mapping | BaseModel):
        items = list(records)
        wrong = next((index for index, item in enumerate(items) if not isinstance(item, Record)), None)
        if wrong is None:
            return items
        if not hasattr(records, "record"):  # the result of a mutation unpacks, too
            found = f"'{type(items[wrong]).__name__}' at index {wrong}"
    raise EvolveError(
        f"records: expected a sequence of Records, found {found}; pass result.record of each mutation, as in "
        "[result.record]."
    )


def check_call(model: Any, site: Any, seed: Any, loss: Any, batches: Any, limits: Any, strict: Any) -> None:
    """Checks the arguments of `mutate`.

    Raises:
        EvolveError: If one is of another type or out of range.
    """
    check_model(model)
    if site is not None and not isinstance(site, str):
        raise EvolveError(f"site: expected a dotted name such as 'features.0', or None. Found {_shown(site)}.")
    if seed is not None and (type(seed) is not int or seed not in SEEDS):
        raise EvolveError(f"seed: expected an int from -2**63 to 2**64 - 1, or None. Found {_shown(seed)}.")
    if loss is not None and not callable(loss):
        raise EvolveError(f"loss: expected a function of the model's outputs, or None. Found {_shown(loss)}.")
    if batches is not None and (isinstance(batches, Iterator) or not isinstance(batches, Iterable)):
        raise EvolveError(
            "loss_batches: expected a sequence of pairs (example_inputs, loss), or None; an iterator can be gone "
            f"through only once. Found {_shown(batches)}."
        )
    if limits is not None and not isinstance(limits, Limits):
        raise EvolveError(
            f"limits: expected evolve.Limits({', '.join(f'{name}=...' for name in Limits.model_fields)}), or None. "
            f"Found {_shown(limits)}."
        )
    if not isinstance(strict, bool):
        raise EvolveError(f"strict: expected True or False. Found {_shown(strict)}.")


def opened(operator: MutationOperator, note: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the fields of a record that are known before an attempt: operator, options, declaration, note.

    Raises:
        EvolveError: If one of them cannot be recorded.
    """
    if operator.preserves not in get_args(Preserves):
        allowed = ", ".join(map(repr, get_args(Preserves)))
        raise EvolveError(
            f"Operator '{operator.name}' declares preserves = {_shown(operator.preserves)}. Allowed: {allowed}."
        )
    try:
        options = json_value(operator.options.model_dump(mode="json"), "options")
        same = type(operator.options).read(options) == operator.options
    except ValueError as error:  # pydantic's for what it cannot write or read is one, too
        raise EvolveError(f"The options of '{operator.name}' cannot be recorded: {text_of(error)}") from error
    if not same:
        raise EvolveError(f"The options of '{operator.name}' cannot be recorded: they would be read back as {options}.")
    return {"operator": operator.name, "options": options, "preserves": operator.preserves, **_checked(note)}


def _checked(note: Mapping[str, Any] | None) -> dict[str, Any]:
    known = list(Note.model_fields)
    if not isinstance(note, Mapping | None):
        raise EvolveError(f"note: expected a mapping with {', '.join(known)}. Found {_shown(note)}.")
    try:
        checked = Note.model_validate(dict(note or {}))
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                faults.append(f"there is no '{key}' in a note.{did_you_mean(key, known)}")
            else:
                faults.append(f"'{key}': {fault['msg']}. Found {_shown(fault['input'])}.")
        raise EvolveError(f"note: {' '.join(faults)} Known keys: {', '.join(known)}.") from error
    return {key: getattr(checked, key) for key in checked.model_fields_set}


def applied(given: Mapping[str, Any], attempt: Attempt, message: str) -> Record:
    """Returns the record of an attempt that is about to be kept, after a look whether it can be read back.

    Raises:
        RejectedError: If it cannot be recorded: nobody could rebuild the model.
    """
    try:
        json_value(attempt.site, "site")
        record = _record(given, attempt, "applied", message)
        Record.model_validate_json(record.model_dump_json())
    except ValueError as error:  # pydantic's are, too
        raise RejectedError(f"The mutation cannot be recorded, so it is not kept: {error}") from error
    return record


def refused(given: Mapping[str, Any], attempt: Attempt, status: Status, message: str, trace: str | None) -> Record:
    """Returns the record of an attempt that came to nothing."""
    attempt.params_after, attempt.flops_after = attempt.params_before, attempt.flops_before
    return _record(given, attempt, status, message, trace)


def _record(
    given: Mapping[str, Any], attempt: Attempt, status: Status, message: str, trace: str | None = None
) -> Record:
    return Record(
        **given,
        site=attempt.site,
        plan=attempt.plan,
        seed=attempt.seed,
        status=status,
        success=status == "applied",
        message=message,
        inputs=attempt.inputs,
        max_abs_diff=attempt.max_abs_diff,
        params_before=attempt.params_before,
        params_after=attempt.params_before if attempt.params_after is None else attempt.params_after,
        flops_before=attempt.flops_before,
        flops_after=attempt.flops_after,
        traceback=trace,
    )


def _shown(value: Any) -> str:
    """Returns a value for a message; its class where it says too much, or nothing."""
    if isinstance(value, str | int | float | bool | None):
        text = ascii(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"a {type(value).__name__}"


@contextmanager
def no_exit(operator: str) -> Iterator[None]:
    """Lets no operator end the process: `sys.exit()` in one is a failure as any other.

    What a signal handler of the user raises meanwhile goes on its way.

    Raises:
        MutationError: Where the operator would have ended it.
    """
    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        if _from_signal_handler(error):
            raise
        code = f"({error.code!r})" if isinstance(error, SystemExit) and isinstance(error.code, int | None) else ""
        raise MutationError(
            f"The operator '{operator}' raised {type(error).__name__}{code}, which ends a process. It has to raise "
            "NotApplicable, or an error that says what went wrong."
        ) from error


def _from_signal_handler(error: BaseException) -> bool:
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))
