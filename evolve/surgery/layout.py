"""How groups of channels lie in an axis, as JSON values, so that a plan can be carried out without the analysis.

A layout is a size (positions that stay), the name of a group, or a list: `["*", ...]` for a product (row-major) and
`["+", ...]` for a concatenation of layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from evolve.structure.axes.algebra import Axis

Layout = Any


def layout_of(axis: Axis, names: Mapping[Axis, str]) -> Layout:
    """Returns the layout of an axis in terms of the groups that are named; the others are sizes."""
    axis = axis.resolved()
    if axis.kind == "plain":
        return names.get(axis, axis.size)
    parts = [layout_of(part, names) for part in axis.parts]
    if all(isinstance(part, int) for part in parts):
        return axis.size
    if axis.kind == "product":
        return ["*", *parts]
    joined: list[Layout] = []
    for part in parts:  # what stays is one run, however many groups it consists of
        if joined and isinstance(part, int) and isinstance(joined[-1], int):
            joined[-1] += part
        else:
            joined.append(part)
    return ["+", *joined]


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
    if kind == "+":
        return _one_after_the_other(found, lengths)
    joined = found[0]
    for move, size in zip(found[1:], lengths[1:], strict=True):
        joined = _within(joined, move, size)
    return joined


def _one_after_the_other(moves: Sequence[Move], lengths: Sequence[int]) -> Move:
    starts = torch.tensor([0, *accumulate(lengths[:-1])])
    counts = torch.tensor([len(move.source) for move in moves])
    source = torch.cat([move.source for move in moves])
    source = torch.where(source < 0, -1, source + starts.repeat_interleave(counts))
    if all(move.factors is None for move in moves):
        return Move(source)
    return Move(source, torch.cat([_factors(move) for move in moves]))


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


def positions(axis: Axis) -> dict[Axis, Tensor]:
    """Returns the positions of an axis that belong to each member of the plain axes in it, as `members` does."""
    axis = axis.resolved()
    if axis.kind == "plain":
        return {axis: torch.arange(axis.size)[:, None]}
    parts, found = axis.parts, dict[Axis, Tensor]()
    if axis.kind == "sum":
        start, runs = 0, dict[Axis, list[Tensor]]()
        for part in parts:
            for leaf, index in positions(part).items():
                runs.setdefault(leaf, []).append(index + start)
            start += part.size
        return {leaf: torch.cat(i, dim=1) if len(i) > 1 else i[0] for leaf, i in runs.items()}
    for number, part in enumerate(parts):
        before = torch.arange(prod(other.size for other in parts[:number]))
        behind = torch.arange(prod(other.size for other in parts[number + 1 :]))
        for leaf, index in positions(part).items():
            if leaf not in found:  # of one that is multiplied with itself the outer factor tells the members apart
                outer = before[:, None, None] * part.size + index[:, None, :, None]
                found[leaf] = (outer * len(behind) + behind).flatten(1)
    return found


def holds(layout: Layout, group: str) -> bool:
    """Returns whether a group lies in a layout."""
    return layout == group if isinstance(layout, int | str) else any(holds(part, group) for part in layout[1:])
