"""How the search in a folder stands, read from its archive while it runs or afterwards."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Group
from rich.text import Text

from evolve.errors import EvolveError
from evolve.population.archive import Archive
from evolve.population.folder import ARCHIVE, is_search
from evolve.report.printable import one_line
from evolve.report.search_view import SearchView, counted
from evolve.training.eta import duration
from evolve.training.lock import is_held


def search_status(folder: Path) -> Group:
    """Returns how a search stands.

    Raises:
        EvolveError: If the folder holds none.
    """
    with open_archive(folder) as archive:
        view, last, steps = read_view(archive)
        out = archive.out()
        unit, amount = view.budget
        seconds = seconds_of(archive)
        spent = {"evaluations": view.evaluated, "seconds": seconds, "steps": steps}[unit]
        finished = archive.get("finished", False)
    progress = min(1.0, spent / amount)
    since = f"The last one came back {duration(max(0.0, time.time() - last))} ago" if last else "None has come back yet"
    return Group(
        Text(one_line(str(folder)), style="bold"),
        view.shown(progress, seconds),
        Text(one_line(f"{_now(folder, len(out), finished)} {since}."), style="dim"),
    )


def _now(folder: Path, out: int, finished: bool) -> str:
    """Says whether anybody is at it."""
    if is_held(folder):
        return f"{counted(out, 'evaluation')} under way."
    return "Finished." if finished else f"No process is at it: `evolve resume {folder}` goes on."


def seconds_of(archive: Archive) -> float:
    """Returns how long a search has taken: when it was stopped last, or when it proposed something since."""
    state = archive.state()
    return float(max(archive.get("seconds", 0.0), state["seconds"] if state else 0.0))


def open_archive(folder: Path) -> Archive:
    """Opens the archive of a search to look at it.

    Raises:
        EvolveError: If the folder holds none.
    """
    if not is_search(folder):
        raise EvolveError(
            f"'{folder}' holds no search: it has no {ARCHIVE}. Give the folder that `evolve search` printed."
        )
    return Archive.read(folder / ARCHIVE)


def read_view(archive: Archive) -> tuple[SearchView, float | None, int]:
    """Returns how a search stands, when its last evaluation came back, and the optimizer steps of all."""
    objectives = [(metric, mode) for metric, mode in archive.get("objectives")]
    unit, amount = archive.get("budget")
    view = SearchView(objectives, (unit, amount), archive.get("executor")["workers"])
    view.lost, last, steps = len(archive.losses()), None, 0
    for evaluation, individual in archive.finished():
        last, steps = evaluation.finished_at or last, steps + evaluation.steps
        view.take(individual, evaluation.status, evaluation.metrics, evaluation.finished_at or 0.0)
    return view, last, steps
