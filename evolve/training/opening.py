"""Finding and reading the checkpoints of a run."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from evolve.errors import CheckpointError
from evolve.lineage import Record
from evolve.training.folder import REPLACED, DamagedError, check_whole, stamp
from evolve.training.restoring import read_records
from evolve.training.tensors import read_model, read_state

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
BEST = "best"  # beside them, of the epoch that did best by the run's monitor: the newest counts
PENDING = "best.pending"  # the same, while the mutation that it holds is on probation
CONFIG = "config.yaml"
VERSION = 4
WEIGHTS, STATE, RECORDS, CONTENT = "model.safetensors", "state.pt", "lineage.jsonl", "checkpoint.json"
_NEEDED = (WEIGHTS, STATE, RECORDS, CONTENT)
_PARTS = {"optimizer", "lr_schedule", "extra", "scheduler", "scaler", "ema", "best", "new_parameters", "random"}
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
        config: The configuration, or what could be named of a run that was started in Python; None where it has none.
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


def newest_checkpoint(run: Path) -> Path:
    """Returns the newest checkpoint that is whole; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: If there is none.
    """
    return open_newest(run).path


def open_newest(run: Path, root: str = FOLDER) -> Checkpoint:
    """Reads the newest checkpoint that is whole, also while a run writes new ones and deletes old ones.

    Args:
        run: The run folder.
        root: The folder of it that they lie in.

    Raises:
        CheckpointError: If there is none.
    """
    for _ in range(_TRIES):
        found = paths_of(run, root)
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
            if paths_of(run, root) == found:
                break
    raise CheckpointError(
        f"No whole checkpoint in '{run / root}'. Give a run folder; a run that was "
        "stopped before it saved anything has to be started again."
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is that of a checkpoint, and not of a run."""
    return _NAME.fullmatch(folder.name) is not None and (folder / CONTENT).is_file()


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint by its folder.

    Raises:
        DamagedError: If it is not whole.
    """
    return _read(path)


def open_best(run: Path) -> Checkpoint | None:
    """Reads the checkpoint of the epoch that did best; None where the run has none, or it is damaged."""
    return open_newest(run, BEST) if any(fault_of(path) is None for path in paths_of(run, BEST)) else None


def open_epoch(run: Path, epoch: int) -> Checkpoint:
    """Reads the checkpoint of the end of an epoch.

    Raises:
        CheckpointError: If it was not kept, with those that were.
    """
    known: dict[int, Path] = {}
    for path in (*paths_of(run), *paths_of(run, BEST)):
        if fault_of(path) is None:
            content = _content(path)
            if content.batch == 0:
                known.setdefault(content.epoch, path)
    if epoch not in known:
        kept = ", ".join(map(str, sorted(known))) or "none"
        raise CheckpointError(
            f"'{run}' has no checkpoint of the end of epoch {epoch}; it has those of {kept}. Keep more of them with "
            "output.keep."
        )
    return _read(known[epoch])


def newer(run: Path, than: Path) -> Path | None:
    """Returns a whole checkpoint of a later step, if there is one."""
    step = order_of(than)
    return next((path for path in paths_of(run) if order_of(path) > step and fault_of(path) is None), None)


def _read(path: Path) -> Checkpoint:
    files = check_whole(path, _NEEDED)
    try:
        content = _content(path)
        config = (path / CONFIG).read_text(encoding="utf-8") if CONFIG in files else None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error
    saved = read_state(path / STATE)
    if missing := _PARTS - set(saved):
        raise DamagedError(f"{STATE} has no {', '.join(sorted(missing))}")
    return Checkpoint(path, content, read_records(path / RECORDS), read_model(path / WEIGHTS), saved, config)


def _content(path: Path) -> Content:
    text = (path / CONTENT).read_bytes()
    try:
        version = json.loads(text).get("version")
        if version != VERSION:
            raise CheckpointError(f"'{path}' has version {version!r}; this evolve reads version {VERSION}.")
        return Content.model_validate_json(text)
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{CONTENT} is unreadable: {error}") from error


def fault_of(path: Path) -> str | None:
    """Says what is wrong with a checkpoint; None where all of it is whole."""
    try:
        check_whole(path, _NEEDED)
    except DamagedError as error:
        return str(error)
    return None


def paths_of(run: Path, folder: str = FOLDER) -> list[Path]:
    """The folders of checkpoints, newest first.

    Raises:
        CheckpointError: If the folder that they lie in is a link: what a run writes and deletes lies within its folder.
    """
    root = run / folder
    if root.is_symlink():
        raise CheckpointError(f"'{root}' is a link. A run folder holds its checkpoints itself: move them there.")
    found = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=order_of, reverse=True)


def order_of(path: Path) -> tuple[int, bool]:
    """Returns what the folders of checkpoints are sorted by: the step, and whether none is about to take its place."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), match[2] is None) if match else (-1, False)
