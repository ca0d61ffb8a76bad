"""A search as text for the terminal: the front, the family of the best, and what each operator has paid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from evolve.report.printable import one_line
from evolve.report.scatter import scatter
from evolve.report.search_history import History, paid
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
        history, seconds = History.read(archive), seconds_of(archive)
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


def _plot(view: SearchView, history: History) -> RenderableType:
    """Draws the first two objectives of all, the front marked."""
    (one, _), (other, _) = view.objectives[:2]
    on_front = {each.id for each, _ in view.best}
    points = [(found[other], found[one], each in on_front) for each, found in history.metrics.items()]
    return scatter(points, x=one_line(other), y=one_line(one))


def _families(view: SearchView, history: History) -> RenderableType:
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


def _paid(history: History, view: SearchView) -> RenderableType:
    """Tells of each operator how often it made a child, and how often that was better than its parent."""
    metric, mode = view.objectives[0]
    table = Table(box=None, pad_edge=False, title="What each operator paid", title_justify="left", title_style="bold")
    for heading in (
        "operator",
        "children",
        "better than the parent",
        Text(one_line(f"median change of {metric}")),
        "not made or known",
    ):
        table.add_column(heading, justify="left" if heading == "operator" else "right")
    for one in paid(history):
        gain = one.median_gain
        change = "" if gain is None else f"{gain if mode == 'max' else -gain:+.4g}"
        table.add_row(Text(one_line(one.operator)), str(len(one.gains)), one.better, change, str(one.none))
    return table


def _failures(history: History) -> Sequence[RenderableType]:
    if not history.ended:
        return []
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", min_width=5)
    for count, why in history.reasons()[:_REASONS]:
        table.add_row(str(count), Text(one_line(why)))
    return [Text(), Text("What came to nothing (of those alike, the first)", style="bold"), table]
