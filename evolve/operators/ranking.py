"""Which members of all groups go, so that a model costs no more than it is to cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from evolve.operators.regroup import Regrouping, Remake
from evolve.structure.analysis import Analysis
from evolve.structure.axes.algebra import Axis
from evolve.structure.axes.groups import Group


@dataclass(frozen=True)
class Bundle:
    """Groups that only change together, most of them alone, as they are ranked.

    Attributes:
        groups: Of one size.
        orders: For each of them its members, those that go first in front.
        scores: Of the first to go, the second and so on; of several groups their mean.
        most: How many may go.
        kind: Only bundles of one kind are held against each other. Of each kind the same part goes.
    """

    groups: tuple[Group, ...]
    orders: tuple[Tensor, ...]
    scores: Tensor
    most: int
    kind: object

    @property
    def size(self) -> int:
        """Members of each group."""
        return self.groups[0].size


def bundle(groups: Sequence[Group], scores: Sequence[Tensor], *, absolute: bool, most: int, kind: object) -> Bundle:
    """Returns groups that only change together, with the order in which their members go.

    Args:
        groups: Of one size.
        scores: For each group those of its members.
        absolute: Whether scores can be compared as they are; else they are divided by the mean of their group.
        most: How many may go.
        kind: See `Bundle`.
    """
    scaled = [one if absolute else one / one.mean().clamp(min=1e-12) for one in scores]
    ranked = [one.sort(stable=True) for one in scaled]
    mean = torch.stack([values for values, _ in ranked]).mean(dim=0)
    return Bundle(tuple(groups), tuple(order for _, order in ranked), mean, most, kind)


def taken(
    bundles: Sequence[Bundle],
    cost: Callable[[Sequence[Regrouping]], float],
    goal: float,
    multiple_of: int = 1,
    fineness: int = 1,
) -> list[int] | None:
    """Returns how many members go from each bundle: as few as make the model cost no more than `goal`.

    Members go by their rank among all of their kind, so that the same part of each kind goes.

    Args:
        bundles: What may go.
        cost: What the model costs after some changes; falls with each member that goes.
        goal: What it may cost.
        multiple_of: Sizes are rounded up to a multiple of this.
        fineness: How many members may be taken too many, to ask for fewer costs.

    Returns:
        None where all that may go is not enough.
    """
    whose = _queue(bundles)

    def counts(first: int) -> list[int]:
        return _rounded(bundles, torch.bincount(whose[:first], minlength=len(bundles)).tolist(), multiple_of)

    def costs(first: int) -> float:
        return cost(sized(bundles, counts(first)))

    few, enough = 0, len(whose)
    if not enough or costs(enough) > goal:
        return None
    while enough - few > fineness:
        middle = (few + enough) // 2
        few, enough = (few, middle) if costs(middle) <= goal else (middle, enough)
    return counts(enough)


def _queue(bundles: Sequence[Bundle]) -> Tensor:
    """Returns, for each member that may go, the number of its bundle: those that go first in front."""
    ranks: list[Tensor] = [torch.empty(0, dtype=torch.float64)] * len(bundles)
    for kind in dict.fromkeys(one.kind for one in bundles):
        same = [number for number, one in enumerate(bundles) if one.kind == kind]
        order = torch.cat([bundles[number].scores for number in same]).argsort(stable=True)
        rank = torch.empty(len(order), dtype=torch.float64)
        rank[order] = (torch.arange(len(order), dtype=torch.float64) + 0.5) / len(order)
        for number, part in zip(same, rank.split([bundles[number].size for number in same]), strict=True):
            ranks[number] = part[: bundles[number].most]
    whose = torch.cat([torch.full((len(rank),), number) for number, rank in enumerate(ranks)])
    return whose[torch.cat(ranks).argsort(stable=True)]


def sized(bundles: Sequence[Bundle], counts: Sequence[int]) -> list[Regrouping]:
    """Returns changes to the sizes that are left when so many have gone from each bundle, whichever those are."""
    return [
        Regrouping(group, [Remake(list(range(one.size - count)))])
        for one, count in zip(bundles, counts, strict=True)
        if count
        for group in one.groups
    ]


def most(bundles: Sequence[Bundle], multiple_of: int = 1) -> list[int]:
    """Returns how many members go from each bundle where all go that may."""
    return _rounded(bundles, [one.most for one in bundles], multiple_of)


def _rounded(bundles: Sequence[Bundle], counts: Sequence[int], multiple_of: int) -> list[int]:
    """Returns how many of those that are to go may go for the new sizes to be multiples of a number."""
    kept = [
        math.ceil((one.size - count) / multiple_of) * multiple_of for one, count in zip(bundles, counts, strict=True)
    ]
    return [one.size - min(one.size, left) for one, left in zip(bundles, kept, strict=True)]


def role(analysis: Analysis, group: Group) -> str:
    """Returns whether a group counts blocks (heads), lies within blocks (the width of each head), or is "plain"."""
    changeable = {one.axis for one in analysis.changeable}
    for slot in group.slots:
        if slot.reads:
            continue
        for parts in _products(analysis.flow.sources[slot.name][slot.axis]):
            if group.axis in parts[:-1]:
                return "blocks"
            if group.axis is parts[-1] and changeable & set(parts[:-1]):
                return "within"
    return "plain"


def _products(axis: Axis) -> list[tuple[Axis, ...]]:
    axis = axis.resolved()
    if axis.kind == "product":
        return [axis.parts, *(found for part in axis.parts for found in _products(part))]
    return [found for part in axis.parts for found in _products(part)]


def structure(model: nn.Module, group: Group) -> tuple[object, ...]:
    """Returns what groups of the same structure share: which layers make and read them (Fang et al. 2024)."""
    owners = (slot.name.rpartition(".") for slot in group.slots)
    kinds = ((type(model.get_submodule(owner)).__name__, key) for owner, _, key in owners)
    return tuple(
        sorted((kind, key, slot.axis, slot.reads) for (kind, key), slot in zip(kinds, group.slots, strict=True))
    )


def share_of(group: Group, scopes: Mapping[str, float], otherwise: float) -> float:
    """Returns the largest part of a group that may go: the least that a scope of one of its layers allows.

    Args:
        group: The group.
        scopes: Parts by dotted name of a module, with what is inside it; `*` stands for any part of a name.
        otherwise: Where no scope says anything.
    """
    makers = {slot.name.rpartition(".")[0] for slot in group.slots if not slot.reads}
    return min(
        (share for scope, share in scopes.items() if any(inside(one, scope) for one in makers)), default=otherwise
    )


def inside(module: str, scope: str) -> bool:
    """Whether a module is what a scope names, or lies inside it."""
    return fnmatchcase(module, scope) or fnmatchcase(module, f"{scope}.*")
