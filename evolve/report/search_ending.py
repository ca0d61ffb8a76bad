"""What is said of a search at its beginning and at its end, in plain text."""

from __future__ import annotations

from collections.abc import Mapping

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
    if search.space.rooted and all(one.id for one in result.best):
        start = search.archive.metrics(0)
        lines += ["The first model, which all others grow out of", f"      0  {_figures(start, search)}"]
    first = result.best[0].folder
    lines += ["", _row("Evaluations", f"{result.evaluations:,}"), _row("Folder", str(result.folder))]
    if first is not None:
        lines.append(_row("Its first model", f"evolve.load('{first}')"))
    lines.append(_row("Next", f"evolve {'report' if result.finished else 'resume'} {result.folder}"))
    return lines


def _told(found: Found, search: Search) -> str:
    made = f"{found.mutations} mutation{'s' * (found.mutations != 1)}" if found.folder is not None else str(found.code)
    return f"{found.id:>5}  {_figures(found.metrics, search)}, {made}"


def _figures(metrics: Mapping[str, float], search: Search) -> str:
    sought = [each.metric for each in search.objectives]
    tests = [name for name in metrics if name.startswith("test_") and name != "test_loss"]
    costs = [name for name in ("params", "flops") if name not in sought]
    return ", ".join(f"{name} {figure(name, metrics[name])}" for name in (*sought, *tests, *costs) if name in metrics)


def _row(name: str, value: str) -> str:
    return f"{name:<19} {value}"
