"""What is said of a search at its beginning and at its end, in plain text."""

from __future__ import annotations

from evolve.population.evolving import Search
from evolve.population.results import Found, SearchResult
from evolve.report.search_view import figure
from evolve.training.lines import wrapped


def opening_lines(search: Search) -> list[str]:
    """Returns what is searched, by what, and where it goes on."""
    config = search.config
    sought = ", ".join(f"{each.metric} ({each.mode})" for each in search.objectives)
    workers = search.executor.workers
    where = config.executor.name.replace("_", " ") + (f" x {workers}" if workers > 1 else "")
    begun = search.archive.counts().get("done", 0)
    first = f"Going on with {search.folder} after {begun:,} evaluations. " if begun else ""
    return wrapped(
        f"{first}{config.algorithm.name} seeks {sought} in {config.budget.amount:,g} {config.budget.unit}, {where}."
    )


def closing_lines(search: Search, result: SearchResult) -> list[str]:
    """Returns how a search ended and what was found."""
    lines = [""]
    if search.planner.exhausted:
        lines += wrapped("Nothing new was found in a long time: the space is searched through, or limits bind.")
    elif not result.finished:
        lines.append(
            f"Stopped at {search.progress:.1%} of {search.config.budget.amount:,g} {search.config.budget.unit}."
        )
    if not result.best:
        return [*lines, "No individual was evaluated. `evolve report` says why."]
    several = len(search.objectives) > 1
    lines.append(f"Front of {len(result.best)}" if several else f"The best {len(result.best)}")
    lines += [f"  {_told(one, search)}" for one in result.best]
    first = result.best[0].folder
    lines += ["", _row("Evaluations", f"{result.evaluations:,}"), _row("Folder", str(result.folder))]
    if first is not None:
        lines.append(_row("Its first model", f"evolve.load('{first}')"))
    lines.append(_row("Next", f"evolve {'report' if result.finished else 'resume'} {result.folder}"))
    return lines


def _told(found: Found, search: Search) -> str:
    names = [each.metric for each in search.objectives]
    costs = [name for name in ("params", "flops") if name not in names and name in found.metrics]
    tests = [name for name in found.metrics if name.startswith("test_") and name.removeprefix("test_") != "loss"]
    figures = [
        f"{name} {figure(name, found.metrics[name])}" for name in (*names, *tests, *costs) if name in found.metrics
    ]
    made = (
        f", {found.mutations} mutation{'s' * (found.mutations != 1)}" if found.folder is not None else f", {found.code}"
    )
    return f"{found.id:>5}  {', '.join(figures)}{made}"


def _row(name: str, value: str) -> str:
    return f"{name:<19} {value}"
