"""What is said of a search at its beginning and at its end, in plain text."""

from __future__ import annotations

from collections.abc import Mapping

from evolve.population.evolving import Search
from evolve.population.results import Found, SearchResult
from evolve.report.search_view import budget_words, counted, figure
from evolve.training.lines import wrapped


def opening_lines(search: Search) -> list[str]:
    """Returns what is searched, by what, and where it goes on."""
    config = search.config
    sought = " and ".join(f"{'high' if each.mode == 'max' else 'low'} {each.metric}" for each in search.objectives)
    workers, name = search.executor.workers, config.executor.name
    where = "in this process" if name == "in_process" else f"by {counted(workers, 'worker')} ({name})"
    begun = search.archive.counts().get("done", 0)
    first = f"Going on with {search.folder} after {counted(begun, 'evaluation')}. " if begun else ""
    budget = budget_words(config.budget.unit, config.budget.amount)
    return wrapped(f"{first}{config.algorithm.name} seeks {sought} for {budget}, {where}.")


def closing_lines(search: Search, result: SearchResult) -> list[str]:
    """Returns how a search ended and what was found."""
    lines = [""]
    if search.planner.exhausted:
        lines += wrapped("Nothing new was found in a long time: the space is searched through, or limits bind.")
    elif not result.finished:
        budget = budget_words(search.config.budget.unit, search.config.budget.amount)
        lines.append(f"Stopped at {search.progress:.0%} of {budget}.")
    if not result.best:
        return [*lines, *wrapped(f"No individual was evaluated. `evolve report {search.folder}` says why.")]
    several = len(search.objectives) > 1
    lines.append(f"Front of {len(result.best)}" if several else f"The best {len(result.best)}")
    lines += [line for one in result.best for line in _listed(one.id, _told(one, search))]
    if result.first is not None and all(one.id for one in result.best):
        lines += ["The first model, which all others grow out of"]
        lines += _listed(0, _figures(result.first.metrics, search))
    first = result.best[0].folder
    lines += ["", _row("Evaluations", f"{result.evaluations:,}"), _row("Folder", str(result.folder))]
    if first is not None:
        lines.append(_row("First of them" if several else "Best model", f"evolve.load('{first}')"))
    lines.append(_row("Next", f"evolve {'report' if result.finished else 'resume'} {result.folder}"))
    return lines


def _told(found: Found, search: Search) -> str:
    made = counted(found.mutations, "mutation") if found.folder is not None else str(found.code)
    return f"{_figures(found.metrics, search)}, {made}"


def _listed(individual: int, text: str) -> list[str]:
    return wrapped(text, first=f"{individual:>7}  ", then=" " * 9)


def _figures(metrics: Mapping[str, float], search: Search) -> str:
    sought = [each.metric for each in search.objectives]
    tests = [name for name in metrics if name.startswith("test_") and name != "test_loss"]
    costs = [name for name in ("params", "flops") if name not in sought]
    return ", ".join(f"{name} {figure(name, metrics[name])}" for name in (*sought, *tests, *costs) if name in metrics)


def _row(name: str, value: str) -> str:
    return f"{name:<19} {value}"
