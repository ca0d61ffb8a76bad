"""Two architectures side by side: what was added, removed and changed, and what stayed as it was."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, cast

from evolve.structure.sites import STORE
from evolve.training.architecture import ModuleLine

Change = Literal["same", "inside", "changed", "added", "removed"]
_DEEPEST = 50  # modules within each other
_USUAL = re.compile(
    r", (eps=1e-05|momentum=0\.1|affine=True|track_running_stats=True)(?=,|$)"
)  # fills lines for nothing

Told = list[tuple[str, bool]]  # parts of a text, each with whether it differs


@dataclass(frozen=True)
class Row:
    """A module, or several next to each other that stayed as they were.

    Attributes:
        name: Dotted name; of several the first one's.
        label: What it is called within its parent.
        depth: Modules that it is in.
        change: What became of it; "inside" where only modules in it have changed.
        before: What it was, "" parts where it was not there; likewise `after`.
        params_before: Parameters of it and all in it; None where it was not there; likewise `params_after`.
    """

    name: str
    label: str
    depth: int
    change: Change
    before: Told
    after: Told
    params_before: int | None
    params_after: int | None


@dataclass(frozen=True)
class Block:
    """A module with parameters of its own.

    Attributes:
        name: Dotted name.
        change: What became of it.
        params: How many.
    """

    name: str
    change: Change
    params: int


Part = tuple[str, list[Block]]  # of the model: its name, and the modules with parameters in it


@dataclass
class _Node:
    line: ModuleLine
    label: str
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def params(self) -> int:
        return self.line.params + sum(child.params for child in self.children.values())


def compare(before: Sequence[ModuleLine] | None, after: Sequence[ModuleLine]) -> list[Row]:
    """Returns the rows of two architectures, outermost first.

    Args:
        before: The modules of the first one; None where it is not known: then nothing counts as changed.
        after: The modules of the second one.
    """
    return list(_rows(_tree(before or after), _tree(after), 0)) if after else []


def blocks(before: Sequence[ModuleLine] | None, after: Sequence[ModuleLine]) -> tuple[list[Part], list[Part]]:
    """Returns the modules with parameters of both architectures, in the order in which they are declared.

    Args:
        before: The modules of the first one; None where it is not known.
        after: The modules of the second one.
    """
    sides = [_tree(lines) if lines else None for lines in (before, after)]
    found = [dict(_leaves(side)) if side else {} for side in sides]
    shown = []
    for here, there, missing in ((found[0], found[1], "removed"), (found[1], found[0], "added")):
        made: list[Part] = []
        for name, (top, node) in here.items():
            other = there.get(name)
            change = missing if other is None else "same" if _own(other[1]) == _own(node) else "changed"
            if not made or made[-1][0] != top:
                made.append((top, []))
            made[-1][1].append(Block(name, cast(Change, change if before else "same"), node.line.params))
        shown.append(made)
    return shown[0], shown[1]


def _leaves(node: _Node, top: str = "") -> Iterator[tuple[str, tuple[str, _Node]]]:
    if node.line.params:
        yield node.line.name, (top, node)
    for child in node.children.values():
        yield from _leaves(child, top or child.label)


def _tree(lines: Sequence[ModuleLine]) -> _Node:
    """The modules within each other; a block that evolve inserted stands below the module that it works at."""
    placed = {block: line.name for line in lines for block in line.inserted}
    nodes = {line.name: _Node(line, line.name.rpartition(".")[2] or line.kind) for line in lines}
    root = nodes[lines[0].name]
    for name, node in nodes.items():
        parent = placed.get(name, name.rpartition(".")[0])
        node.label = f"+ {node.label}" if name in placed else node.label
        if parent in nodes and name != STORE and node is not root:
            nodes[parent].children[name] = node
    level = [root]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in node.children.values()]
    for node in level:  # of a file that was made to exhaust whoever reads it
        node.children.clear()
    return root


def _same(one: _Node, other: _Node) -> bool:
    pairs = zip(one.children.items(), other.children.items(), strict=False)
    alike = _own(one) == _own(other) and len(one.children) == len(other.children)
    return alike and all(a == b and _same(x, y) for (a, x), (b, y) in pairs)


def _own(node: _Node) -> tuple[str, str, int]:
    return node.line.kind, node.line.settings, node.line.params


def _rows(one: _Node | None, other: _Node | None, depth: int) -> Iterable[Row]:
    yield _row(one, other, depth)
    if one is not None and other is not None and _same(one, other) and depth:
        return
    here = (one.children if one else {}, other.children if other else {})
    pairs = [(here[0].get(name), here[1].get(name)) for name in _merged(list(here[0]), list(here[1]))]
    for stayed, run in groupby(pairs, _stayed):
        found = list(run)
        if stayed and len(found) > 2:
            yield _folded([a for a, _ in found if a], depth + 1)
        else:
            for pair in found:
                yield from _rows(*pair, depth + 1)


def _stayed(pair: tuple[_Node | None, _Node | None]) -> bool:
    one, other = pair
    return one is not None and other is not None and _same(one, other)


def _merged(before: list[str], after: list[str]) -> list[str]:
    """The names of both; what is gone stands behind what it stood behind."""
    names = list(after)
    for position, name in enumerate(before):
        if name not in names:
            behind = next((n for n in reversed(before[:position]) if n in names), None)
            names.insert(0 if behind is None else names.index(behind) + 1, name)
    return names


def _row(one: _Node | None, other: _Node | None, depth: int) -> Row:
    node = other or one
    assert node is not None
    if one is None or other is None:
        change: Change = "added" if one is None else "removed"
        before, after = [(text, False)] if (text := _text(one)) else [], [(_text(other), False)] if other else []
    else:
        change = "same" if _same(one, other) else "inside" if _own(one) == _own(other) else "changed"
        before, after = _differing(_text(one), _text(other))
    params = [None if side is None else side.params for side in (one, other)]
    return Row(node.line.name, node.label, depth, change, before, after, params[0], params[1])


def _folded(nodes: Sequence[_Node], depth: int) -> Row:
    params = sum(node.params for node in nodes)
    label = f"{nodes[0].label} … {nodes[-1].label}"
    text: Told = [(f"{len(nodes)} modules as before", False)]
    return Row(nodes[0].line.name, label, depth, "same", text, text, params, params)


def _text(node: _Node | None) -> str:
    if node is None:
        return ""
    settings = _USUAL.sub("", node.line.settings)
    return f"{node.line.kind}({settings})" if settings else node.line.kind


def _differing(one: str, other: str) -> tuple[Told, Told]:
    """Two texts in parts, each with whether the other one has it at the same place."""
    parts = [re.split(r"(?<=\()|(?<=, )", text) for text in (one, other)]
    if len(parts[0]) != len(parts[1]):
        return [(one, True)], [(other, True)]
    marks = [a != b for a, b in zip(*parts, strict=True)]
    return list(zip(parts[0], marks, strict=True)), list(zip(parts[1], marks, strict=True))
