"""How the search in a folder stands, read from its archive while it runs or afterwards."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Group
from rich.text import Text

from evolve.errors import EvolveError
from evolve.population.archive import Archive
from evolve.report.printable import one_line
from evolve.report.search_view import SearchView
from evolve.training.eta import duration

ARCHIVE = "archive.sqlite"


def search_status(folder: Path) -> Group:
    """Returns how a search stands.

    Raises:
        EvolveError: If the folder holds none.
    """
    with open_archive(folder) as archive:
        view, last, steps = read_view(archive)
        out = archive.out()
        unit, amount = view.budget
        begun = archive.get("begun", time.time())
        seconds = archive.get("seconds") or (last or begun) - begun
        spent = {"evaluations": view.evaluated, "seconds": seconds, "steps": steps}[unit]
        told = f"{len(out)} under way" if out else "nothing is under way"
        since = f", the last one {duration(max(0.0, time.time() - last))} ago" if last else ""
    return Group(
        Text(one_line(str(folder)), style="bold"),
        view.shown(min(1.0, spent / amount), seconds),
        Text(f"{told}{since}", style="dim"),
    )


def open_archive(folder: Path) -> Archive:
    """Opens the archive of a search to look at it.

    Raises:
        EvolveError: If the folder holds none.
    """
    if not (folder / ARCHIVE).is_file():
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
