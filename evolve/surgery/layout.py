"""How groups of channels lie in an axis, as JSON values, so that a plan can be carried out without the analysis.

A layout is a size (positions that stay), the name of a group, or a list: `["*", ...]` for a product (row-major) and
`["+", ...]` for a concatenation of layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Move:
    """What happens to a group.

    Attributes:
        source: For each new member the old one it comes from; -1 for a new one.
        factors: A factor for each new member; None for 1 everywhere.
    """

    source: Tensor
    factors: Tensor | None = None


def moved(layout: Layout, sizes: Mapping[str, int], move_of: Callable[[str], Move]) -> Move:
    """Returns what moves of groups, all at once, do to an axis that they lie in."""
    if isinstance(layout, int):
        return Move(torch.arange(layout))
    if isinstance(layout, str):
        return move_of(layout)
    kind, *parts = layout
    found = [moved(part, sizes, move_of) for part in parts]
    lengths = [length(part, sizes) for part in parts]
    joined = found[0]
    for index, move in enumerate(found[1:], 1):
        joined = _behind(joined, move, sum(lengths[:index])) if kind == "+" else _within(joined, move, lengths[index])
    return joined


def _behind(one: Move, other: Move, start: int) -> Move:
    source = torch.where(other.source < 0, -1, other.source + start)
    factors = None
    if one.factors is not None or other.factors is not None:
        factors = torch.cat([_factors(one), _factors(other)])
    return Move(torch.cat([one.source, source]), factors)


def _within(outer: Move, inner: Move, size: int) -> Move:
    rows = outer.source[:, None]
    source = torch.where((rows < 0) | (inner.source < 0), -1, rows * size + inner.source).flatten()
    factors = None
    if outer.factors is not None or inner.factors is not None:
        factors = (_factors(outer)[:, None] * _factors(inner)).flatten()
    return Move(source, factors)


def _factors(move: Move) -> Tensor:
    return torch.ones(len(move.source), dtype=torch.float64) if move.factors is None else move.factors


def members(layout: Layout, group: str, sizes: Mapping[str, int]) -> Tensor:
    """Returns the positions of an axis that belong to each member of a group, (members, positions of one)."""
    if isinstance(layout, int | str):
        return (
            torch.arange(sizes[group])[:, None] if layout == group else torch.empty(sizes[group], 0, dtype=torch.long)
        )
    kind, *parts = layout
    lengths = [length(part, sizes) for part in parts]
    found = []
    for number, part in enumerate(parts):
        if not holds(part, group):
            continue
        index = members(part, group, sizes)
        if kind == "+":
            found.append(index + sum(lengths[:number]))
            continue
        before, behind = torch.arange(prod(lengths[:number])), torch.arange(prod(lengths[number + 1 :]))
        outer = before[:, None, None] * lengths[number] + index[:, None, :, None]
        found.append((outer * len(behind) + behind).flatten(1))
        break  # of a group that is multiplied with itself the outer factor tells the members apart
    return torch.cat(found, dim=1)


def holds(layout: Layout, group: str) -> bool:
    """Returns whether a group lies in a layout."""
    return layout == group if isinstance(layout, int | str) else any(holds(part, group) for part in layout[1:])
