"""How groups of channels lie in an axis, as JSON values, so that a plan can be carried out without the analysis.

A layout is a size (positions that stay), the name of a group, or a list: `["*", ...]` for a product (row-major) and
`["+", ...]` for a concatenation of layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from evolve.structure.axes import Axis

Layout = Any


def layout_of(axis: Axis, names: Mapping[Axis, str]) -> Layout:
    """Returns the layout of an axis in terms of the groups that are named; the others are sizes."""
    axis = axis.resolved()
    if axis.kind == "plain":
        return names.get(axis, axis.size)
    if not any(leaf in names for leaf in axis.leaves()):
        return axis.size
    return ["*" if axis.kind == "product" else "+", *(layout_of(part, names) for part in axis.parts)]


def length(layout: Layout, sizes: Mapping[str, int]) -> int:
    """Returns the positions of a layout for given sizes of its groups."""
    if isinstance(layout, int):
        return layout
    if isinstance(layout, str):
        return sizes[layout]
    lengths = [length(part, sizes) for part in layout[1:]]
    return prod(lengths) if layout[0] == "*" else sum(lengths)


def blocks(layout: Layout, group: str, sizes: Mapping[str, int]) -> tuple[list[int], int]:
    """Returns where the blocks of a group begin, and how many positions each member of the group has.

    Member i lies in the range of `inner` positions from `start + i * inner` on, for each of the starts.
    """
    found = list(_blocks(layout, group, sizes))
    inner = {size for _, size in found}
    if len(inner) > 1:
        raise ValueError(f"'{group}' lies in {layout} in several ways")
    return [start for start, _ in found], inner.pop() if inner else 1


def _blocks(layout: Layout, group: str, sizes: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    if isinstance(layout, int | str):
        if layout == group:
            yield 0, 1
        return
    kind, *parts = layout
    lengths = [length(part, sizes) for part in parts]
    for position, part in enumerate(parts):
        inside = list(_blocks(part, group, sizes))
        if kind == "+":
            yield from ((sum(lengths[:position]) + start, inner) for start, inner in inside)
        else:
            within = prod(lengths[position + 1 :])
            for outer in range(prod(lengths[:position]) if inside else 0):
                for start, inner in inside:
                    yield (outer * lengths[position] + start) * within, inner * within
