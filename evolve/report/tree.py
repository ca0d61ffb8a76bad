"""The modules of a model as a tree with shapes and costs; what repeats is shown once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from evolve.report.facts import Inspection, ModuleFacts
from evolve.report.names import compact, pattern, short, sizes
from evolve.structure.tracing.tape import Shape


@dataclass
class _Node:
    """A module and its children.

    Attributes:
        label: Its name within its parent.
        facts: What is known of it.
        alike: What has to be equal for two siblings to share a line: everything but names and times.
    """

    label: str
    facts: ModuleFacts
    children: list[_Node]
    alike: Any


def module_tree(facts: Inspection, depth: int | None = None) -> Table:
    """Returns one row for each module, down to `depth`; siblings alike become one row after the first of them."""
    measured = facts.modules[0].latency_ms is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("module", min_width=20)  # the one that gives way in a narrow terminal
    table.add_column("shape", no_wrap=True)
    for heading in ("params", "FLOPs", "memory", *(["ms"] if measured else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    batch = facts.inputs[0][0] if facts.inputs and facts.inputs[0] else 0
    for guide, below, nodes in _rows([_tree(facts)], "", depth):
        first = nodes[0].facts
        memory = short(_sum(nodes, "activation_bytes"), "B")
        cells = [short(_sum(nodes, "parameters")), short(_sum(nodes, "flops")), memory]
        if measured:
            cells.append(short(_sum(nodes, "latency_ms")))
        name = Text.assemble((guide, "dim"), (", ".join(compact(node.label for node in nodes)), "bold"))
        name.append(f" {first.class_name}")
        name.no_wrap, name.overflow = True, "ellipsis"
        if len(nodes) > 1:
            shape = Text(f"{len(nodes)} more as above", style="dim")
        else:
            shape = _shape(first, bool(nodes[0].children), batch)
        table.add_row(name, shape, *cells)
        for block in compact(block for node in nodes for block in node.facts.inserted):
            table.add_row(Text.assemble((below, "dim"), (f"+ {block}", "green")), "")
    return table


def _tree(facts: Inspection) -> _Node:
    children: dict[str, list[ModuleFacts]] = {}
    for module in facts.modules[1:]:
        children.setdefault(module.name.rpartition(".")[0], []).append(module)

    def node(module: ModuleFacts, label: str) -> _Node:
        below = [node(child, child.name.rpartition(".")[2]) for child in children.get(module.name, [])]
        costs = (module.parameters, module.flops, module.activation_bytes, module.calls)
        shapes = (tuple(module.inputs), tuple(module.outputs), bool(module.inserted))
        alike = (module.class_name, costs, shapes, tuple((child.label, child.alike) for child in below))
        return _Node(label, module, below, alike)

    return node(facts.modules[0], facts.model)


def _rows(nodes: Sequence[_Node], guide: str, depth: int | None) -> Iterator[tuple[str, str, list[_Node]]]:
    """Yields for each row its guide, the guide of what is below it, and its nodes."""
    rows = [row for _, run in groupby(nodes, lambda n: (pattern(n.label), n.alike)) for row in _folded(list(run))]
    for number, row in enumerate(rows):
        root, last = not row[0].facts.name, number == len(rows) - 1
        here, inner = ("", "") if root else (guide + ("└ " if last else "├ "), guide + ("  " if last else "│ "))
        yield here, inner, row
        if len(row) == 1 and depth != 0:
            yield from _rows(row[0].children, inner, None if depth is None else depth - 1)


def _folded(run: list[_Node]) -> list[list[_Node]]:
    """The first of a run in full, the rest in one row where that is shorter."""
    if len(run) > 2 or (len(run) == 2 and run[0].children):
        return [run[:1], run[1:]]
    return [[node] for node in run]


def _shape(module: ModuleFacts, contains: bool, batch: int) -> Text:
    taken, given = _shapes(module.inputs, batch), _shapes(module.outputs, batch)
    if not module.outputs:
        return Text("" if module.calls or contains else "not called", style="dim")
    text = given if taken == given or not taken else f"{taken} → {given}"
    if not module.calls:
        return Text(f"{text} in training", style="dim")
    return Text(f"{text}  {module.calls} calls" if module.calls > 1 else text)


def _shapes(shapes: Sequence[Shape], batch: int) -> str:
    return ", ".join(dict.fromkeys(sizes(shape, batch) for shape in shapes))


def _sum(nodes: Sequence[_Node], attribute: str) -> float:
    return sum(getattr(node.facts, attribute) or 0 for node in nodes)
