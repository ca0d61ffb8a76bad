"""Weights under the hash of what they hold: in a folder, or in the memory of a worker that shares no folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from evolve.errors import EvolveError, NoRoomError

_ENDING = ".safetensors"
_NAME = re.compile(r"[0-9a-f]{64}")
_HELD = 4  # blobs that a worker remembers between two calls: those of its last child and of the parent's


class BlobFolder:
    """Blobs as files. Several processes may write to it at a time.

    A file is there whole or not at all, and is on the disk once `write` returns.

    Args:
        path: The folder; it is made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes:
        """Returns a blob.

        Raises:
            EvolveError: If it is missing or damaged, with its name.
        """
        file = self._file(name)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise EvolveError(f"The weights '{file}' cannot be read: {error}. {_ADVICE}") from error
        if name_of(content) != name:
            raise EvolveError(f"The weights '{file}' are damaged: they are not what was written. {_ADVICE}")
        return content

    def write(self, content: bytes) -> str:
        """Keeps a blob and returns its name.

        Raises:
            NoRoomError: If it cannot be written.
        """
        name = name_of(content)
        file = self._file(name)
        if file.exists():
            return name
        partial = file.with_name(f".{name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            partial.replace(file)
            _flush(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise NoRoomError(
                f"Weights could not be written to '{self.path}': {error}. Make room, and resume."
            ) from error
        return name

    def delete(self, names: Iterable[str]) -> None:
        """Removes blobs that nobody will read again."""
        for name in names:
            self._file(name).unlink(missing_ok=True)

    def collect(self, keep: Collection[str]) -> None:
        """Removes all but some, and what killed writers have left. No worker may be running."""
        kept = {name + _ENDING for name in keep}
        for file in self.path.iterdir():
            if file.name not in kept and file.name.endswith((_ENDING, ".partial")):
                file.unlink(missing_ok=True)

    def size(self) -> int:
        """Returns how many bytes there are."""
        return sum(file.stat().st_size for file in self.path.glob("*" + _ENDING))

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):  # names come from files and workers: none leads out of the folder
            raise EvolveError(f"{name!r} is no name of weights: it has to be a SHA-256 in hexadecimal digits.")
        return self.path / (name + _ENDING)


class MemoryBlobs:
    """Blobs that were sent to a worker or that it made, the last few of them.

    Attributes:
        written: What was written since `begin`.
    """

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}
        self.written: dict[str, bytes] = {}

    def begin(self, sent: Mapping[str, bytes]) -> None:
        """Takes what was sent for the next call."""
        self.written = {}
        for name, content in sent.items():
            self._hold(name, content)

    def read(self, name: str) -> bytes:
        """Returns a blob.

        Raises:
            EvolveError: If it was not sent.
        """
        if name not in self._held:
            raise EvolveError(f"The weights '{name}' were not sent to this worker: an order has to name what it needs.")
        self._hold(name, self._held[name])
        return self._held[name]

    def write(self, content: bytes) -> str:
        """Keeps a blob and returns its name."""
        name = name_of(content)
        self.written[name] = content
        self._hold(name, content)
        return name

    def trim(self) -> list[str]:
        """Forgets all but the last few that were used, and returns the names of these."""
        self._held = dict(list(self._held.items())[-_HELD:])
        return list(self._held)

    def _hold(self, name: str, content: bytes) -> None:
        self._held.pop(name, None)
        self._held[name] = content


def name_of(content: bytes) -> str:
    """Returns the name of a blob: the SHA-256 of what it holds, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


_ADVICE = "Put the file back from a copy, or begin a new search."


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
