"""A run's state on disk: base model + records + tensors, written whole or not at all, loaded without pickle."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from evolve.errors import CheckpointError
from evolve.lineage import Lineage, Record
from evolve.runtime.generators import random_state, set_random_state
from evolve.surgery.optimizer_names import check_optimizers, load_optimizer_by_name, optimizer_by_name
from evolve.training import TrainState
from evolve.training.finite import check_finite_optimizer
from evolve.training.folder import REPLACED, DamagedError, check_whole, discard, stamp, write_text, written_whole
from evolve.training.restoring import fitting, read_records, replay_bounded
from evolve.training.tensors import extra_state, load_tensors, read_model, read_state, write_model, write_state

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
CONFIG = "config.yaml"
_VERSION = 3
_WEIGHTS, _STATE, _RECORDS, _CONTENT = "model.safetensors", "state.pt", "lineage.jsonl", "checkpoint.json"
_NEEDED = (_WEIGHTS, _STATE, _RECORDS, _CONTENT)
_NAME = re.compile(rf"step-(\d+)({re.escape(REPLACED)})?")
_TRIES = 50  # of reading while another process writes new checkpoints and deletes old ones


class Content(BaseModel):
    """What `checkpoint.json` holds: where the run stands and what it has spent, and what it needs to go on."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: int
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    batch: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    flops: int = Field(ge=0)
    flops_per_sample: int = Field(ge=0)
    finite: dict[str, list[str]]
    progress: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory; every file of it was whole.

    Attributes:
        path: Its folder.
        content: Where the run stands.
        records: All records so far.
        tensors: Of the model.
        saved: Of the optimizer and all else.
        config: The run's configuration; None for a run that was started in Python.
    """

    path: Path
    content: Content
    records: list[Record]
    tensors: dict[str, Tensor]
    saved: dict[str, Any]
    config: str | None

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path.parents[1]


def save_checkpoint(
    run: Path, state: TrainState, lineage: Lineage, progress: dict[str, Any], keep: int, config: str | None = None
) -> Path:
    """Writes `checkpoints/step-N`, and deletes all but the newest `keep` that are whole.

    Args:
        run: The run folder.
        state: What training moves.
        lineage: All records so far.
        progress: What else the run needs to go on, as JSON values.
        keep: Checkpoints to keep.
        config: The run's configuration.

    Returns:
        The checkpoint's folder; it appears only when all of it is on disk.

    Raises:
        NonFiniteModelError: If the model or the optimizer's state is NaN or infinite; nothing was written.
        CheckpointError: If it cannot be written.
    """
    state.finite.check(state.model, state.ema.shadow if state.ema else {})
    target = run / FOLDER / f"step-{state.step:08d}"
    if target.exists() and _fault(target):
        discard(target)  # what is damaged gives nothing to fall back to
    saved = _state(state)
    check_finite_optimizer(saved["optimizer"])
    content = {"version": _VERSION, **state.counts(), "finite": state.finite.state(), "progress": progress}
    with written_whole(target) as folder:
        write_text(folder / _RECORDS, "".join(record.model_dump_json() + "\n" for record in lineage))
        write_text(folder / _CONTENT, json.dumps(content))
        if config is not None:
            write_text(folder / CONFIG, config)
        write_model(state.model, folder / _WEIGHTS)
        write_state(saved, folder / _STATE)
    others = [path for path in _paths(run) if path != target]
    if len(others) >= keep:
        whole = [path for path in others if _fault(path) is None]
        for path in set(others) - set(whole[: keep - 1]):
            discard(path)
    return target


def newest_checkpoint(run: Path) -> Path:
    """Returns the newest checkpoint that is whole; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: If there is none.
    """
    return open_newest(run).path


def open_newest(run: Path) -> Checkpoint:
    """Reads the newest checkpoint that is whole, also while a run writes new ones and deletes old ones.

    Raises:
        CheckpointError: If there is none.
    """
    for _ in range(_TRIES):
        found = _paths(run)
        for path in found:
            before = stamp(path)
            try:
                checkpoint = _read(path)
            except DamagedError as error:
                if stamp(path) != before:
                    break  # it was deleted or replaced meanwhile: look again
                logger.warning("Checkpoint %s is damaged (%s); trying the one before it.", path, error)
                continue
            if stamp(path) == before:
                return checkpoint
            break
        else:
            if _paths(run) == found:
                break
    raise CheckpointError(
        f"No whole checkpoint in '{run / FOLDER}'. Give a run folder; a run that was "
        "stopped before it saved anything has to be started again."
    )


def newer(run: Path, than: Path) -> Path | None:
    """Returns a whole checkpoint of a later step, if there is one."""
    step = _order(than)
    return next((path for path in _paths(run) if _order(path) > step and _fault(path) is None), None)


def load_model(checkpoint: Checkpoint, model: nn.Module, averaged: bool = False) -> None:
    """Replays a checkpoint's records on the base model and loads the weights strictly.

    Args:
        checkpoint: As it was read.
        model: The base model, built as it was for the run.
        averaged: Take the moving average of the weights where the run kept one.

    Raises:
        CheckpointError: If records or weights do not fit the model.
        UnknownNameError: If a record's operator is not known.
    """
    with fitting(checkpoint.path):
        replay_bounded(model, checkpoint.records, checkpoint.tensors)
        load_tensors(model, checkpoint.tensors, checkpoint.saved["extra"], checkpoint.path)
        if averaged and checkpoint.saved["ema"] is not None:
            shadow = checkpoint.saved["ema"]["shadow"]
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in shadow:
                        parameter.copy_(shadow[name])


def restore(checkpoint: Checkpoint, state: TrainState) -> dict[str, Any]:
    """Brings a fresh state over the base model to where the checkpoint was taken.

    Returns:
        What was given as `progress`.

    Raises:
        CheckpointError: If model, optimizer or another part do not fit.
    """
    saved, content = checkpoint.saved, checkpoint.content
    parts = {"lr_schedule": "scheduler", "loss scaling": "scaler", "training.ema": "ema"}
    for word, name in parts.items():
        if (saved[name] is None) != (getattr(state, name) is None):
            has, lacks = ("this one has", "has none") if saved[name] is None else ("this one has none", "has one")
            raise CheckpointError(f"The run in {checkpoint.path} {lacks} ({word}), {has}. Build it as it was.")
    check_optimizers(state.optimizer, saved["optimizer"])
    was, here = saved["lr_schedule"], type(state.scheduler).__name__
    if was != here:  # the state of another schedule would be taken up without a word
        raise CheckpointError(
            f"The run in {checkpoint.path} had lr_schedule {was}, this one has {here}. Build it as it was."
        )
    load_model(checkpoint, state.model)
    with fitting(checkpoint.path):
        if state.config.channels_last:
            state.model.to(memory_format=torch.channels_last)
        load_optimizer_by_name(state.model, state.optimizer, saved["optimizer"])
        if state.scheduler is not None:
            state.scheduler.load_state_dict(saved["scheduler"])
        if state.scaler is not None:
            state.scaler.load_state_dict(saved["scaler"])
        if state.ema is not None:
            state.ema.load_state_dict(saved["ema"])
        if state.new_parameters is not None and saved["new_parameters"] is not None:
            state.new_parameters.load_state_dict(saved["new_parameters"])
        state.take_counts(content.model_dump())
        state.finite.load_state(content.finite)
        set_random_state(saved["random"])
    return content.progress


def _state(state: TrainState) -> dict[str, Any]:
    return {
        "lr_schedule": type(state.scheduler).__name__,
        "extra": extra_state(state.model),
        "optimizer": optimizer_by_name(state.model, state.optimizer),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "ema": state.ema.state_dict() if state.ema else None,
        "new_parameters": state.new_parameters.state_dict() if state.new_parameters else None,
        "random": random_state(),
    }


def _read(path: Path) -> Checkpoint:
    files = check_whole(path, _NEEDED)
    try:
        content = _content(path)
        config = (path / CONFIG).read_text(encoding="utf-8") if CONFIG in files else None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error
    saved = read_state(path / _STATE)
    missing = {"optimizer", "lr_schedule", "extra", "scheduler", "scaler", "ema", "new_parameters", "random"} - set(
        saved
    )
    if missing:
        raise DamagedError(f"{_STATE} has no {', '.join(sorted(missing))}")
    return Checkpoint(path, content, read_records(path / _RECORDS), read_model(path / _WEIGHTS), saved, config)


def _content(path: Path) -> Content:
    text = (path / _CONTENT).read_bytes()
    try:
        version = json.loads(text).get("version")
        if version != _VERSION:
            raise CheckpointError(f"'{path}' has version {version!r}; this evolve reads version {_VERSION}.")
        return Content.model_validate_json(text)
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{_CONTENT} is unreadable: {error}") from error


def _fault(path: Path) -> str | None:
    try:
        check_whole(path, _NEEDED)
    except DamagedError as error:
        return str(error)
    return None


def _paths(run: Path) -> list[Path]:
    """The folders of checkpoints, newest first.

    Raises:
        CheckpointError: If the folder that they lie in is a link: what a run writes and deletes lies within its folder.
    """
    root = run / FOLDER
    if root.is_symlink():
        raise CheckpointError(f"'{root}' is a link. A run folder holds its checkpoints itself: move them there.")
    found = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, bool]:
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), match[2] is None) if match else (-1, False)
