"""Saving and restoring for training loops of one's own, in the way that runs are saved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evolve.care.ema import EMA
from evolve.errors import CheckpointError, EvolveError
from evolve.lineage import Record
from evolve.mutation.api import underneath
from evolve.mutation.recording import as_records, check_model
from evolve.runtime.generators import random_state, set_random_state
from evolve.structure.probe import count_parameters
from evolve.surgery.optimizer import Optimizers, as_optimizers
from evolve.surgery.optimizer_names import check_held, check_optimizers, load_optimizer_by_name, optimizer_by_name
from evolve.surgery.transaction import Transaction
from evolve.training.finite import check_finite, check_finite_optimizer
from evolve.training.folder import REPLACED, DamagedError, check_whole, write_text, written_whole
from evolve.training.restoring import fitting, read_records, replay_bounded
from evolve.training.tensors import extra_state, load_tensors, read_model, read_state, write_model, write_state

Averages: TypeAlias = EMA | AveragedModel

_WEIGHTS, _STATE, _RECORDS = "model.safetensors", "state.pt", "lineage.jsonl"
_VERSION = 1


def save(
    path: str | Path,
    model: nn.Module,
    optimizer: Optimizers | None,
    records: Iterable[Record],
    *,
    ema: Averages | None = None,
) -> None:
    """Saves a model that was mutated, and what trains it, to a folder: whole, or not at all.

    Weights are written as safetensors, the optimizer's groups and state by parameter name, the records as JSON lines,
    and the state of the random number generators. A folder that was saved to before is replaced; until the new one is
    whole, the old one stays.

    Args:
        path: The folder.
        model: As it stands. Of a model in a wrapper (`torch.compile`) what is inside is saved.
        optimizer: One, a sequence of several, or None.
        records: Of every mutation since the base model, in their order: `[result.record, ...]`. Those of a submodule
            that was mutated on its own may be among them.
        ema: An average of the weights, `evolve.care.ema.EMA` or torch's `AveragedModel`.

    Raises:
        NonFiniteModelError: If a parameter, an average or the optimizer's state is NaN or infinite, or a buffer is NaN.
        EvolveError: If an argument is of another type.
        CheckpointError: If the records do not lead to this model, the folder holds something else, or it cannot be
            written.
    """
    _check_arguments(model, ema)
    model = underneath(model)
    target = Path(os.path.abspath(path))
    rooted = [_rooted(record, index, model) for index, record in enumerate(as_records(records))]
    _check_records(rooted, model)
    check_finite(model, _averages(ema))
    state: dict[str, Any] = {
        "version": _VERSION,
        "optimizer": optimizer_by_name(model, as_optimizers(optimizer)),
        "ema": None if ema is None else {"class": _kind(ema), "state": ema.state_dict()},
        "extra": extra_state(model),
        "random": random_state(),
    }
    check_finite_optimizer(state["optimizer"])
    with written_whole(target) as folder:
        write_text(folder / _RECORDS, "".join(record.model_dump_json() + "\n" for record in rooted))
        write_model(model, folder / _WEIGHTS)
        write_state(state, folder / _STATE)


def restore(
    path: str | Path, model: nn.Module, optimizer: Optimizers | None, *, ema: Averages | None = None
) -> list[Record]:
    """Brings a base model, and what trains it, to where `save` was called; or leaves everything as it was.

    The records are replayed on the model, in place, and the optimizer follows; then weights, the optimizer's groups and
    state, and averages take their saved values. The global random number generators go on as they were.

    Args:
        path: The folder.
        model: The base model, built as it was before its first mutation.
        optimizer: Built over it as it was then: one, a sequence of several, or None to leave the saved state aside.
        ema: Built over it as it was then, or None to leave saved averages aside.

    Returns:
        All records so far, to go on with: append those of further mutations, and pass them to `save`.

    Raises:
        EvolveError: If an argument is of another type.
        CheckpointError: If the folder is missing or damaged, or does not fit: optimizers and averages must be of the
            classes that were saved, optimizers over the same parameters and in the same order.
        UnknownNameError: If a mutation was made by an operator that is not known: import its plugin first.
    """
    _check_arguments(model, ema)
    model = underneath(model)
    folder = _whole(Path(os.path.abspath(path)))
    records, tensors, saved = _read(folder)
    optimizers = as_optimizers(optimizer)
    twin = ema.module if isinstance(ema, AveragedModel) else None
    if ema is not None and saved["ema"] is None:
        raise CheckpointError(f"'{folder}' was saved without an average of the weights. Pass no ema.")
    if ema is not None and saved["ema"]["class"] != _kind(ema):
        raise CheckpointError(
            f"ema: '{folder}' was saved with {saved['ema']['class']}, passed {_kind(ema)}. Pass the kind saved."
        )
    before = ema.state_dict() if isinstance(ema, EMA) else None
    try:
        with fitting(folder), Transaction(model, optimizers), nullcontext() if twin is None else Transaction(twin):
            if optimizer is not None:
                check_optimizers(optimizers, saved["optimizer"])
            base = dict(model.named_parameters())
            replay_bounded(model, records, tensors, optimizers, ema)
            load_tensors(model, tensors, saved["extra"], folder)
            if optimizer is not None:
                check_held(model, optimizers, saved["optimizer"], base)
                load_optimizer_by_name(model, optimizers, saved["optimizer"])
            if ema is not None:
                ema.load_state_dict(saved["ema"]["state"])
    except BaseException:
        if isinstance(ema, EMA) and before is not None:
            ema.load_state_dict(before)
        raise
    set_random_state(saved["random"])
    return records


def _check_arguments(model: Any, ema: Any) -> None:
    check_model(model)
    if ema is not None and not isinstance(ema, EMA | AveragedModel):
        raise EvolveError(
            f"ema: expected evolve.care.ema.EMA or torch's AveragedModel, found '{type(ema).__name__}'. Pass "
            "EMA(model, decay), or None."
        )


def _kind(ema: Averages) -> str:
    return "EMA" if isinstance(ema, EMA) else "AveragedModel"


def _read(folder: Path) -> tuple[list[Record], dict[str, Tensor], dict[str, Any]]:
    try:
        records, tensors = read_records(folder / _RECORDS), read_model(folder / _WEIGHTS)
        saved = read_state(folder / _STATE)
    except DamagedError as error:
        raise CheckpointError(f"'{folder}' is damaged: {error}.") from error
    if saved.get("version") != _VERSION:
        raise CheckpointError(f"'{folder}' has version {saved.get('version')!r}; this evolve reads version {_VERSION}.")
    if missing := {"optimizer", "ema", "extra", "random"} - set(saved):
        raise CheckpointError(f"'{folder}' is damaged: {_STATE} has no {', '.join(sorted(missing))}.")
    return records, tensors, saved


def _whole(target: Path) -> Path:
    """Returns the folder, or the one that it was about to take the place of when a save was killed."""
    faults = []
    for folder in (target, target.with_name(target.name + REPLACED)):
        try:
            check_whole(folder, (_WEIGHTS, _STATE, _RECORDS))
        except DamagedError as error:
            faults.append(str(error))
        else:
            return folder
    raise CheckpointError(f"'{target}' was not saved by evolve.save, or is damaged: {faults[0]}.")


def _rooted(record: Record, index: int, model: nn.Module) -> Record:
    """Returns a record with its index, and the name of the submodule that was mutated."""
    origin = record.origin
    names = [name for name, module in model.named_modules() if module is origin] if origin is not None else []
    return record.model_copy(update={"index": index, "root": names[0] if names else record.root})


def _check_records(records: list[Record], model: nn.Module) -> None:
    """Counts parameters back from the model: a record that is forgotten would show only when it is restored.

    Raises:
        CheckpointError: If the records do not lead to this model.
    """
    modules = dict(model.named_modules())
    later: list[Record] = []
    for record in reversed([record for record in records if record.status == "applied"]):
        if not any(_lies_in(record.root, other.root) for other in later if other.root != record.root):
            found = count_parameters(modules[record.root]) if record.root in modules else 0
            found -= sum(r.params_after - r.params_before for r in later if _lies_in(r.root, record.root))
            if found != record.params_after:
                raise CheckpointError(
                    f"The records do not lead to this model: record {record.index} ('{record.operator}' at "
                    f"'{record.site}') left {record.params_after:,} parameters, counted back from the model there were "
                    f"{found:,}. Pass the record of every mutation, in their order, and the whole model."
                )
        later.append(record)


def _lies_in(name: str, root: str) -> bool:
    return not root or name == root or name.startswith(f"{root}.")


def _averages(ema: Averages | None) -> Mapping[str, Tensor]:
    if isinstance(ema, EMA):
        return ema.shadow
    return {} if ema is None else dict(ema.module.named_parameters())
