"""The file of an archive: opened, and known to be sound."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from evolve.errors import EvolveError
from evolve.population.archive_rows import APPLICATION, VERSION

_ADVICE = "Name the folder of a search."


def connected(path: Path, mode: str) -> sqlite3.Connection:
    """Opens a file; one that is only read in a folder where nothing can be written is taken to change no more."""
    fixed = "&immutable=1" if mode == "ro" and not os.access(path.parent, os.W_OK) else ""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}{fixed}", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise EvolveError(f"'{path}' cannot be opened: {error}. Check the folder and its rights.") from error


def checked(path: Path, mode: str) -> sqlite3.Connection:
    """Opens the file of an archive that is there.

    Args:
        path: The file.
        mode: As SQLite calls it: "rw", or "ro" to look at it.

    Raises:
        EvolveError: If there is none, it is damaged, or it was written by another version of evolve.
    """
    if not path.is_file():
        raise EvolveError(f"There is no search in '{path.parent}': it has no {path.name}. Check the folder's name.")
    if not path.stat().st_size:
        raise EvolveError(f"The search in '{path.parent}' has written nothing yet. Try again once it has begun.")
    connection = connected(path, mode)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        connection.close()
        raise EvolveError(f"'{path}' is no archive of a search: {error}. {_ADVICE}") from error
    if (application, version) != (APPLICATION, VERSION):
        connection.close()
        if application != APPLICATION:
            raise EvolveError(f"'{path}' is no archive of a search. {_ADVICE}")
        raise EvolveError(
            f"'{path}' has version {version} of the archive's form, and this evolve knows version {VERSION}. "
            "Use the version of evolve that wrote it, or begin a new search."
        )
    _check_sound(path, connection)
    return connection


def _check_sound(path: Path, connection: sqlite3.Connection) -> None:
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        connection.close()
        what = found.splitlines()[-1]
        raise EvolveError(f"'{path}' is damaged: {what}. Put it back from a copy, or begin a new search.")
