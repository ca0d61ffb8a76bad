"""A search as text for the terminal: the front, the family of the best, and what each operator has paid."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from evolve.population.archive import Archive
from evolve.population.individual import Individual
from evolve.report.printable import one_line
from evolve.report.scatter import scatter
from evolve.report.search_status import open_archive, read_view, seconds_of
from evolve.report.search_view import SearchView, budget_words, counted, figure
from evolve.training.eta import duration

_FAMILIES = 5  # of the best whose ancestors are shown
_REASONS = 8  # of failures


def search_report(folder: Path) -> Group:
    """Returns what a search has found and how.

    Raises:
        EvolveError: If the folder holds none.
    """
    with open_archive(folder) as archive:
        view, _, steps = read_view(archive)
        history, seconds = _History.read(archive), seconds_of(archive)
        meta = {name: archive.get(name) for name in ("algorithm", "budget", "executor", "space")}
    spent = f"{duration(history.make_seconds)} making, {duration(history.train_seconds)} training"
    told = f"{meta['algorithm']} over {meta['space']}, {budget_words(*meta['budget'])}, {meta['executor']['executor']}"
    parts: list[RenderableType] = [
        Text(one_line(str(folder)), style="bold"),
        Text(one_line(told)),
        Text(view.line(seconds)),
        Text(f"{spent}, {counted(steps, 'optimizer step')}"),
        Text(),
    ]
    if not view.best:
        return Group(*parts, Text("No individual was evaluated."), *_failures(history))
    parts += [view.table(), Text()]
    if len(view.objectives) > 1:
        parts += [_plot(view, history), Text()]
    parts += [_families(view, history), Text(), _paid(history, view)]
    return Group(*parts, *_failures(history))


@dataclass
class _History:
    """All individuals as they stand, and what was measured of them."""

    members: dict[int, Individual] = field(default_factory=dict)
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    first_values: dict[int, float] = field(default_factory=dict)
    statuses: dict[int, str] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    make_seconds: float = 0.0
    train_seconds: float = 0.0

    @classmethod
    def read(cls, archive: Archive) -> _History:
        """Reads it from an archive."""
        found = cls()
        for evaluation, individual in archive.finished():
            found.members[individual.id] = individual
            found.statuses.setdefault(individual.id, evaluation.status)
            found.make_seconds += evaluation.make_seconds
            found.train_seconds += evaluation.train_seconds
            if evaluation.status == "done":
                found.metrics[individual.id] = evaluation.metrics
                found.first_values.setdefault(individual.id, individual.value)
            elif evaluation.status in ("failed", "refused"):
                found.ended[f"{evaluation.status}: {evaluation.ended}"] += 1
        return found


def _plot(view: SearchView, history: _History) -> RenderableType:
    """Draws the first two objectives of all, the front marked."""
    (one, _), (other, _) = view.objectives[:2]
    on_front = {each.id for each, _ in view.best}
    points = [(found[other], found[one], each in on_front) for each, found in history.metrics.items()]
    return scatter(points, x=one_line(other), y=one_line(one))


def _families(view: SearchView, history: _History) -> RenderableType:
    """Draws the ancestors of the best few, from the first individual on."""
    chosen = {each.id for each, _ in view.best[:_FAMILIES]}
    shown = set(chosen)
    for each in chosen:
        while parents := history.members[each].parents:
            each = parents[0]
            shown.add(each)
    children: dict[int | None, list[int]] = defaultdict(list)
    for each in sorted(shown):
        children[next(iter(history.members[each].parents), None)].append(each)
    tree = Tree(Text(f"Family of the best {len(chosen)}", style="bold"), guide_style="dim")

    def grow(branch: Tree, parent: int | None) -> None:
        for each in children[parent]:
            member, first = history.members[each], view.objectives[0][0]
            edits = ", ".join(f"{edit.operator}{f' in {edit.where}' if edit.where else ''}" for edit in member.edits)
            crossed = f", crossed with {member.parents[1]}" if len(member.parents) > 1 else ""
            value = history.metrics.get(each, {}).get(first)
            label = f"{each}  {figure(first, value) if value is not None else ''}  {edits or 'the first'}{crossed}"
            grow(branch.add(Text(one_line(label), style="bold green" if each in chosen else "")), each)

    grow(tree, None)
    return tree


def _paid(history: _History, view: SearchView) -> RenderableType:
    """Tells of each operator how often it made a child, and how often that was better than its parent."""
    gains: dict[str, list[float]] = defaultdict(list)
    statuses: dict[str, Counter[str]] = defaultdict(Counter)
    for each, member in history.members.items():
        if not member.parents or not member.edits:
            continue
        for operator in dict.fromkeys(edit.operator for edit in member.edits):
            statuses[operator][history.statuses[each]] += 1
            mine, parents = history.first_values.get(each), history.first_values.get(member.parents[0])
            if mine is not None and parents is not None:
                gains[operator].append(mine - parents)
    metric = view.objectives[0][0]
    table = Table(box=None, pad_edge=False, title="What each operator paid", title_justify="left", title_style="bold")
    for heading in (
        "operator",
        "children",
        "better than the parent",
        Text(one_line(f"median change of {metric}")),
        "not made or known",
    ):
        table.add_column(heading, justify="left" if heading == "operator" else "right")
    for operator in sorted(statuses):
        found = gains[operator]
        better = f"{sum(gain > 0 for gain in found) / len(found):.0%}" if found else ""
        sign = 1 if view.objectives[0][1] == "max" else -1
        change = f"{sign * median(found):+.4g}" if found else ""
        none = statuses[operator]["duplicate"] + statuses[operator]["refused"]
        table.add_row(Text(one_line(operator)), str(len(found)), better, change, str(none))
    return table


def _failures(history: _History) -> Sequence[RenderableType]:
    if not history.ended:
        return []
    alike: dict[str, list[str]] = defaultdict(list)
    for why in history.ended:
        alike[re.sub(r"\d[\d.e+-]*", "#", why)].append(why)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", min_width=5)
    counts = {reasons[0]: sum(history.ended[why] for why in reasons) for reasons in alike.values()}
    for why in sorted(counts, key=lambda why: -counts[why])[:_REASONS]:
        table.add_row(str(counts[why]), Text(one_line(why)))
    return [Text(), Text("What came to nothing (of those alike, the first)", style="bold"), table]
