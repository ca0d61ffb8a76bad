"""What a page shows of a search, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evolve.population.folder import CONFIG
from evolve.population.individual import Individual
from evolve.report.page.chart import Scale, beside, dots, path
from evolve.report.page.detail import Detail
from evolve.report.page.run_part import signed
from evolve.report.search_history import History, paid
from evolve.report.search_status import open_archive, read_view, seconds_of
from evolve.report.search_view import SearchView, budget_words, figure
from evolve.training.environment import ENVIRONMENT, Environment
from evolve.training.eta import duration
from evolve.training.folder import read_file

_BEST = 50  # rows of the table
_FAMILIES = 5  # of the best whose ancestors are marked
_REASONS = 30  # of failures


def search_part(folder: Path, detail: Detail) -> dict[str, Any]:
    """Returns what the template of a search takes.

    Args:
        folder: Of the search.
        detail: How much of it is shown.

    Raises:
        EvolveError: If the folder holds none.
    """
    with open_archive(folder) as archive:
        view, _, steps = read_view(archive)
        history, seconds = History.read(archive), seconds_of(archive)
        meta = {name: archive.get(name) for name in ("algorithm", "budget", "executor", "space", "seed")}
    config = folder / CONFIG
    environment = read_file(folder / ENVIRONMENT, Environment) or Environment()
    shown = _shown(history, view, detail)
    pictures = [_family(shown, history, view, detail)] if history.metrics else []
    if len(view.objectives) > 1 and history.metrics:
        pictures.insert(0, _front(shown, history, view, detail))
    return {
        "kind": "search",
        "name": folder.name or str(folder),
        "folder": str(folder),
        "told": f"{meta['algorithm']} over {meta['space']}, {budget_words(*meta['budget'])}",
        "tiles": _tiles(view, history, seconds, steps),
        "pictures": pictures,
        "left_out": len(history.metrics) - len(shown),
        "objectives": [f"{'high' if mode == 'max' else 'low'} {metric}" for metric, mode in view.objectives],
        "columns": view.columns(),
        "best": [_row(each, metrics, view, detail) for each, metrics in view.best[:_BEST]],
        "more": max(0, len(view.best) - _BEST),
        "several": len(view.objectives) > 1,
        "paid": [_paid(one, view) for one in paid(history)],
        "metric": view.objectives[0][0],
        "failures": [(count, detail.cut(why)) for count, why in history.reasons()[:_REASONS]],
        "sessions": environment.sessions[-5:],
        "config": config.read_text(encoding="utf-8", errors="replace")[: detail.config] if config.is_file() else "",
        "seed": "" if meta["seed"] is None else str(meta["seed"]),
        "data": {"pictures": [picture["points"] for picture in pictures]},
    }


def _shown(history: History, view: SearchView, detail: Detail) -> list[int]:
    """The individuals that are drawn: the best and their ancestors, and the last of the others."""
    first = {each.id for each, _ in view.best}
    for each in list(first):
        first |= set(_line(each, history))
    others = [each for each in history.metrics if each not in first][-max(0, detail.members - len(first)) :]
    return sorted([*others, *(each for each in first if each in history.metrics)])


def _line(each: int, history: History) -> list[int]:
    """The first parents of an individual, back to the one that has none."""
    found: list[int] = []
    while each in history.members and (parents := history.members[each].parents) and parents[0] not in found:
        each = parents[0]
        found.append(each)
    return found


def _front(shown: Sequence[int], history: History, view: SearchView, detail: Detail) -> dict[str, Any]:
    """The first two objectives of all, with the front as a line."""
    (one, _), (other, _) = view.objectives[:2]
    best = {each.id for each, _ in view.best}
    at = {each: (history.metrics[each][other], history.metrics[each][one]) for each in shown}
    line = sorted(at[each] for each in best if each in at)
    return _picture(f"Front of {one} and {other}", at, (other, one), best, [line], shown, history, view, detail)


def _family(shown: Sequence[int], history: History, view: SearchView, detail: Detail) -> dict[str, Any]:
    """All in the order in which they were proposed, with lines from parents to children among the ancestors."""
    metric = view.objectives[0][0]
    best = {each.id for each, _ in view.best[:_FAMILIES]}
    at = {each: (float(each), history.metrics[each][metric]) for each in shown}
    lines = [[at[one] for one in (each, *_line(each, history)) if one in at] for each in best]
    title = f"Family of the best {len(best)}: {metric} in the order of proposals"
    return _picture(title, at, ("", metric), best, lines, shown, history, view, detail)


def _picture(
    title: str,
    at: Mapping[int, tuple[float, float]],
    names: tuple[str, str],
    marked: Iterable[int],
    lines: Sequence[Sequence[tuple[float, float]]],
    shown: Sequence[int],
    history: History,
    view: SearchView,
    detail: Detail,
) -> dict[str, Any]:
    across, up = Scale.over(x for x, _ in at.values()), Scale.over(y for _, y in at.values())
    marked = set(marked)
    return {
        "title": title,
        "x": names[0] or "individual",
        "all": dots((at[each] for each in shown if each not in marked), across, up),
        "best": dots((at[each] for each in shown if each in marked), across, up),
        "lines": "".join(path(line, across, up) for line in lines if len(line) > 1),
        "x_ticks": [
            (across.at(v) / 10, figure(names[0], v) if names[0] else f"{v:g}") for v in across.ticks() if v >= 0
        ],
        "y_ticks": beside(up, lambda value: figure(names[1], value)),
        "points": [
            [across.at(at[each][0]), up.at(at[each][1]), each, *_told(history, each, view, detail)] for each in shown
        ],
    }


def _told(history: History, each: int, view: SearchView, detail: Detail) -> list[Any]:
    member, metrics = history.members[each], history.metrics[each]
    told = ", ".join(f"{name} {figure(name, metrics[name])}" for name in view.columns() if name in metrics)
    return [detail.cut(edits_of(member)), told, list(member.parents)]


def edits_of(member: Individual) -> str:
    """Returns what made an individual of its parent."""
    if not member.parents:
        return "the first"
    return ", ".join(f"{edit.operator}{f' in {edit.where}' if edit.where else ''}" for edit in member.edits)


def _row(each: Individual, metrics: Mapping[str, float], view: SearchView, detail: Detail) -> dict[str, Any]:
    figures = [figure(name, metrics[name]) if name in metrics else "" for name in view.columns()]
    parents = ", ".join(map(str, each.parents))
    return {"id": each.id, "figures": figures, "edits": detail.cut(edits_of(each)), "parents": parents}


def _tiles(view: SearchView, history: History, seconds: float, steps: int) -> list[tuple[str, str, str]]:
    others = ", ".join(view.done()[1:])
    metric = view.objectives[0][0]
    tiles = [("evaluated", f"{view.evaluated:,}", others)]
    if view.best:
        each, metrics = view.best[0]
        tiles.append((f"best {metric}", figure(metric, metrics[metric]), f"individual {each.id}"))
        first = history.metrics.get(0, {})
        if metric in first:
            tiles.append((f"{metric} of the first", figure(metric, first[metric]), ""))
    tiles.append(("on the front" if len(view.objectives) > 1 else "kept", f"{len(view.best):,}", ""))
    told = f"{duration(history.make_seconds)} making, {duration(history.train_seconds)} training"
    return [*tiles, ("took", duration(seconds), f"{told}, {steps:,} steps")]


def _paid(one: Any, view: SearchView) -> dict[str, Any]:
    metric, mode = view.objectives[0]
    change = None if one.median_gain is None else one.median_gain * (1 if mode == "max" else -1)
    told = "" if change is None else signed(metric, change)
    return {
        "operator": one.operator,
        "children": len(one.gains),
        "better": one.better,
        "change": told,
        "none": one.none,
    }
