"""Folders that are written whole or not at all, and read only if they are as they were written.

A manifest in the folder lists the SHA-256 of every file. A folder is written beside its target and renamed into place;
one that it replaces is renamed out of the way first, and deleted last, so that there is a whole one at any moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from evolve.errors import CheckpointError

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

MANIFEST = "manifest.json"
REPLACED = ".replaced"  # the end of the name of a folder that another is about to take the place of
_PARTIAL, _REMOVED = ".partial", ".removed"
_DIGEST = re.compile("[0-9a-f]{64}")


class DamagedError(CheckpointError):
    """A folder that is not as it was written."""


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yields an empty folder to write files to; it becomes `target` when the block has ended without an error.

    Args:
        target: Where the folder is to be; a folder that was written so before is replaced.

    Raises:
        CheckpointError: If something else is there already, or the files cannot be written.
    """
    if target.is_symlink() or (target.exists() and not _ours(target)):
        raise CheckpointError(
            f"'{target}' is there already and was not written by evolve. Choose another place, or move it away."
        )
    partial = _beside(target, _PARTIAL)
    try:
        remove(partial)
        partial.mkdir(parents=True)
        yield partial
        _seal(partial)
        put_in_place(partial, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"'{target}' could not be written: {error}. Nothing of it was kept, and what was saved before is as it "
            "was. Make room or choose another place."
        ) from error
    finally:
        discard(partial)


def check_whole(folder: Path, needed: Collection[str]) -> set[str]:
    """Holds every file of a folder against the manifest.

    Args:
        folder: Written by `written_whole`.
        needed: Files that have to be listed.

    Returns:
        The names of the files; no other file of the folder is to be read.

    Raises:
        DamagedError: If anything differs.
    """
    digests = _manifest(folder, needed)
    for name, digest in digests.items():
        file = folder / name
        if file.is_symlink():
            raise DamagedError(f"{name} is a link")
        if not file.is_file():
            raise DamagedError(f"{name} is missing")
        try:
            changed = _sha256(file) != digest
        except OSError as error:
            raise DamagedError(f"{name} cannot be read: {error.strerror}") from error
        if changed:
            raise DamagedError(f"{name} has changed")
    return set(digests)


def write_text(path: Path, text: str) -> None:
    """Writes a file; line ends stay as they are."""
    path.write_text(text, encoding="utf-8", newline="\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file in the place of an older one, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written.
    """
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)  # a link to somewhere else is not written through
        write_text(new, text)
        os.replace(new, path)
    except OSError as error:
        discard(new)
        raise CheckpointError(f"'{path}' could not be written: {error}. Make room, and resume the run.") from error


def read_file(path: Path, form: type[M]) -> M | None:
    """Returns what a JSON file holds; None where it is missing or damaged, for what a reader can do without."""
    try:
        return form.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def append_text(path: Path, text: str) -> None:
    """Adds to the end of a file, all of it or nothing: half a line would spoil the one that is added after it.

    Raises:
        CheckpointError: If it cannot be written.
    """
    if path.is_symlink():
        raise CheckpointError(f"'{path}' is a link, and a run writes within its own folder alone. Remove it.")
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, before)
        raise CheckpointError(f"'{path}' could not be written: {error}. Make room, and resume the run.") from error


def stamp(folder: Path) -> tuple[int, int] | None:
    """Returns what tells a folder from another one of the same name; None where there is none."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there; a folder vanishes at once, and is emptied then.

    Raises:
        OSError: If it cannot be deleted.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        doomed = path if path.name.startswith(".") else _beside(path, _REMOVED)
        if doomed != path:
            remove(doomed)
            os.rename(path, doomed)
        shutil.rmtree(doomed)


def discard(path: Path) -> None:
    """Deletes what is of no more use; where that fails, the log says so and all goes on."""
    try:
        remove(path)
    except OSError as error:
        logger.warning("%s is of no more use and could not be deleted: %s", path, error)


def clear_leftovers(parent: Path) -> None:
    """Deletes what writes that were killed have left in a folder; nobody else may be writing there."""
    for path in parent.glob(".*"):
        if path.name.endswith((_PARTIAL, _REMOVED)):
            discard(path)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name}{ending}")


def _ours(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))


def _seal(folder: Path) -> None:
    """Writes the manifest, gives all files the same mode and brings them to the disk."""
    digests = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(digests, indent=1), encoding="utf-8")
    for file in folder.iterdir():
        shutil.copymode(manifest, file)  # safetensors writes files that only their owner can read
        _flush(file)
    _flush(folder)


def put_in_place(partial: Path, target: Path) -> None:
    """Renames a folder that is whole; one that it replaces is there until it is.

    Raises:
        OSError: If it cannot be done.
    """
    before = target.with_name(target.name + REPLACED)
    if target.exists():
        remove(before)
        os.rename(target, before)
    os.replace(partial, target)
    _flush(target.parent)
    discard(before)


def _manifest(folder: Path, needed: Collection[str]) -> dict[str, str]:
    file = folder / MANIFEST
    if folder.is_symlink() or file.is_symlink() or not file.is_file():
        raise DamagedError(f"there is no {MANIFEST}")
    try:
        digests = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is unreadable: {error}") from error
    if not isinstance(digests, dict):
        raise DamagedError(f"{MANIFEST} does not list files")
    if missing := sorted(set(needed) - set(digests)):
        raise DamagedError(f"{MANIFEST} does not list {', '.join(missing)}")
    for name, digest in digests.items():
        if name in ("", ".", "..", MANIFEST) or set(name) & {"/", "\\", "\0"}:
            raise DamagedError(f"{MANIFEST} lists {name!r}, which is no file of this folder")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise DamagedError(f"{MANIFEST} has no digest of {name!r}")
    return digests


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
