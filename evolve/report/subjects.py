"""What `evolve report` is asked about: runs, searches, and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evolve.errors import EvolveError
from evolve.population.folder import is_search
from evolve.report.run_data import LINEAGE, is_run

_DEEP = 2  # folders within each other, such as runs/name/seed-0


def subjects_in(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of runs and searches that are meant, each once.

    Args:
        folders: Of runs, of searches, or of folders of those.

    Raises:
        EvolveError: If one of them holds none.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        inside = _inside(folder, _DEEP)
        if not inside:
            raise EvolveError(
                f"'{folder}' is not a run folder: it has no {LINEAGE}, and there is no run or search in it. Give the "
                "folder that `evolve run` or `evolve search` printed."
            )
        found |= dict.fromkeys(inside)
    return list(found)


def _inside(folder: Path, deep: int) -> list[Path]:
    if is_search(folder) or is_run(folder):
        return [folder]
    if not deep or not folder.is_dir():
        return []
    return [found for child in sorted(folder.iterdir()) if child.is_dir() for found in _inside(child, deep - 1)]
