"""What the benchmarks of the search share: searches among sleepers, and looks at processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evolve.population.config import SearchConfig
from evolve.population.events import SearchCallback
from evolve.population.evolving import Search
from evolve.population.folder import is_search
from evolve.population.starting import begin, go_on, parts_of


def sleeping_search(folder: Path, budget: int, callbacks: Sequence[SearchCallback] = (), **settings: Any) -> Search:
    """Returns a search among sleepers, or the one that lies in the folder.

    Args:
        folder: Where it lies.
        budget: Evaluations.
        callbacks: Told of each event.
        **settings: Of the section `search`; `seconds`, `longest` and `size` are the space's.
    """
    options = {name: settings.pop(name) for name in ("seconds", "longest", "size") if name in settings}
    section = {
        "space": {"name": "sleeping:Sleeping", "options": options},
        "budget": {"evaluations": budget},
        "algorithm": {"name": "elitist", "options": {"population": 50}},
        "again": 0,
        **settings,
    }
    parts = parts_of(SearchConfig.model_validate({"search": section}))
    return go_on(parts, folder, callbacks) if is_search(folder) else begin(parts, folder, callbacks=callbacks)


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process has begun and not yet waited for, zombies among them."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
        except OSError:  # gone in between
            continue
    return found


def lives(pid: int, unless: str = "Z") -> bool:
    """Whether a process is there and in none of some states: Z is one that nobody has waited for, T a stopped one."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in unless
    except OSError:
        return False
