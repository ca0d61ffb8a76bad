"""What a library's checkpoint folder holds of evolve: the records as JSON, and a state of plain values and tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evolve.errors import CheckpointError
from evolve.lineage import Record
from evolve.training.folder import DamagedError, replace_text
from evolve.training.tensors import read_state, write_state

RECORDS, STATE = "evolve_records.json", "evolve_state.pt"
_VERSION = 1


def write_records(folder: str | Path, records: Iterable[Record], **more: Any) -> None:
    """Writes the records that lead to the model in a folder.

    Args:
        folder: A library's checkpoint.
        records: Of all mutations since the base model.
        **more: What else is to be known of the base model, as JSON values.
    """
    content = {"version": _VERSION, **more, "records": [record.model_dump(mode="json") for record in records]}
    replace_text(Path(folder) / RECORDS, json.dumps(content, indent=1) + "\n")


def read_records(folder: str | Path) -> list[Record]:
    """Returns the records in a folder.

    Raises:
        CheckpointError: If there are none, or they are damaged.
    """
    return read_file(folder)[0]


def read_file(folder: str | Path) -> tuple[list[Record], dict[str, Any]]:
    """Returns the records in a folder, and all that was written with them.

    Raises:
        CheckpointError: If there are none, or they are damaged.
    """
    path = Path(folder) / RECORDS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"'{folder}' has no {RECORDS}: it was not saved with evolve's integration.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is unreadable: {error}") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise CheckpointError(f"'{path}' has version {found!r}; this evolve reads version {_VERSION}.")
    try:
        return [Record.model_validate(record) for record in content["records"]], content
    except (ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{path}' has a damaged record: {error}") from error


def write_training(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Writes what a training that is taken up needs beside the records."""
    write_state(state, Path(folder) / STATE)


def read_training(folder: str | Path) -> dict[str, Any]:
    """Returns what `write_training` wrote; no code of the file is run.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    try:
        return read_state(Path(folder) / STATE)
    except DamagedError as error:
        raise CheckpointError(f"'{folder}' cannot be resumed from: {error}.") from error
