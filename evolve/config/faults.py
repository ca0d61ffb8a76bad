"""Faults of a configuration, and the error that reports all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evolve.errors import EvolveError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and a line counted from 1, or "command line"."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        path: The keys that lead to it; empty where it concerns the whole file.
        place: Where it was written.
        message: What was found, what is allowed, what may have been meant.
    """

    path: KeyPath
    place: Place
    message: str

    def __str__(self) -> str:
        key = key_text(self.path)
        return f"{self.place}: {key}: {self.message}" if key else f"{self.place}: {self.message}"


class ConfigError(EvolveError):
    """A configuration with faults.

    Attributes:
        faults: All of them, in the order of the file.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = sorted(dict.fromkeys(faults), key=lambda f: (f.place.line is None, f.place.line or 0))
        files = ", ".join(dict.fromkeys(fault.place.file for fault in self.faults))
        count = f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
        super().__init__("\n".join([f"{count} in {files}:", *(f"  {fault}" for fault in self.faults)]))


class OptionFaults(ValueError):  # noqa: N818 - several faults, reported to pydantic as one error
    """Raised by a section's validator that found several faults; each lies at a path below the section."""

    def __init__(self, faults: Sequence[tuple[KeyPath, str]]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(message for _, message in self.faults))


def key_text(path: KeyPath) -> str:
    """Returns `a.b[0].c` for `("a", "b", 0, "c")`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
