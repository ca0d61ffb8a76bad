"""What a score is, and what the scores share: slopes of would-be weights, estimated on two halves of the samples.

A sum of squares of noisy slopes is large where there is nothing but noise, and the larger the more weights there are.
So the samples are halved, and the product of the two halves' slopes stands for the square: noise of one half has
nothing to do with that of the other, and cancels. Where input weights are turned to be the best, only the first half
decides.

What remains of noise is as likely above zero as below, and large at places where slopes are steep. Each half has eight
parts, whose products with those of the other half show how large it is. A score is a lower bound: two standard errors
below the sum, which noise alone passes in one case of forty. So a small gain that is there for certain comes before a
large one that may be chance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from evolve.registry import Registered, Registry
from evolve.scores.candidate_units import Addition, Reading

PARTS = 8  # of each half of the samples
_ERRORS = 2  # standard errors that a score lies below the sum
_TURNS = 1  # steps in which input weights are turned


class Score(Registered, ABC):
    """Values what a candidate would add, before it is built.

    Attributes:
        name: Registered name.
        turned: Whether the units' input weights are turned towards the largest slope first, or taken as drawn.
        adds_up: Whether the gains of units add up, so that those that are looked at stand for all; else they share it.
    """

    turned: ClassVar[bool] = True
    adds_up: ClassVar[bool] = False

    @abstractmethod
    def of(self, reading: Reading) -> Tensor:
        """Returns the gain at one place that reads the units, as `products` of parts of the samples."""

    def value(self, added: Addition) -> float:
        """Returns the gain at all places together, for all units that would be added."""
        directions = added.directions
        if directions is not None and self.turned:
            directions = steepest(added, directions)
        with torch.no_grad():
            gain = lower_bound(torch.stack([self.of(centred(r)) for r in added.readings(directions, False)]).sum(0))
        return gain * added.units / len(directions) if directions is not None and self.adds_up else gain


scores: Registry[type[Score]] = Registry("score", "evolve.scores")


def centred(reading: Reading) -> Reading:
    """Takes their means off slopes, units and what is present.

    The bias of what is read into follows the mean slope already: it says nothing of new units. Then the mean of the
    units does not change the sum over all samples, but that over a part of them, whose mean slope is not zero by
    chance: there it is nothing but noise, and large where units are (centring, Schraudolph 1998).
    """
    present = reading.present
    return replace(
        reading,
        slopes=reading.slopes - reading.slopes.mean(0),
        units=reading.units - reading.units.mean(0),
        present=None if present is None else present - present.mean(0),
    )


def halves(reading: Reading) -> tuple[Tensor, Tensor]:
    """Returns the slope of the loss with respect to the reading weights, (parts, values, outputs), from either half."""
    parts = reading.samples % (2 * PARTS)
    order, rows = parts.argsort(stable=True), parts.bincount(minlength=2 * PARTS).tolist()
    pairs = zip(reading.units.flatten(1)[order].split(rows), reading.slopes[order].split(rows), strict=True)
    slopes = [units.T @ slopes for units, slopes in pairs]
    return torch.stack(slopes[::2]) * reading.stands_for, torch.stack(slopes[1::2]) * reading.stands_for


def products(first: Tensor, second: Tensor) -> Tensor:
    """Returns four times the product of each part of one half with each part of the other: their sum is a square."""
    return 4 * first.flatten(1).double() @ second.flatten(1).double().T


def lower_bound(found: Tensor) -> float:
    """Returns the sum of products less two of its standard errors, as they are where there is nothing but noise."""
    return float(found.sum() - _ERRORS * found.square().sum().sqrt())


def steepest(added: Addition, directions: Tensor) -> Tensor:
    """Turns input weights towards the largest slope of the reading weights, by the samples of the first half.

    The slope is linear in the input weights as far as the activation is: then each step is one of a power iteration,
    which ends in the first singular vectors (GradMax, Evci et al. 2022). Weights keep their size, and no two of them
    become the same.
    """
    norm = directions.norm(dim=1, keepdim=True)
    for _ in range(_TURNS):
        with torch.enable_grad():
            leaf = directions.detach().requires_grad_()
            found = sum(halves(centred(r))[0].sum(0).square().sum() for r in added.readings(leaf, True))
            (slope,) = torch.autograd.grad(found, leaf)  # type: ignore[arg-type]
        if not bool(torch.isfinite(slope).all()) or float(slope.norm()) == 0.0:
            break
        directions = _apart(slope) * norm
    return directions.detach()


def _apart(rows: Tensor) -> Tensor:
    """Returns unit rows that are orthogonal as far as there is room for them, in the order of their size."""
    order = rows.norm(dim=1).argsort(descending=True)
    size = min(rows.shape)
    basis = torch.linalg.qr(rows[order[:size]].T.double()).Q.T.to(rows)
    new = torch.empty_like(rows)
    new[order[:size]] = basis
    new[order[size:]] = -basis[torch.arange(len(rows) - size) % size]  # the other side of the activation
    return new


def solved(features: Tensor, values: Tensor, *, size: Tensor | None = None, ridge: float = 1e-2) -> Tensor:
    """Returns (F'F + ridge)^-1 values, in float64.

    Args:
        features: F, (rows, features).
        values: (features, any).
        size: Features whose mean square the ridge is relative to; F if None.
        ridge: Relative size of the ridge.
    """
    gram = (features.T @ features).double()
    mean = float((features if size is None else size).square().sum(0).mean())
    gram.diagonal().add_(ridge * mean + 1e-30)
    solution: Tensor = torch.linalg.solve(gram, values.double())
    return solution


def without(present: Tensor, values: Tensor) -> Tensor:
    """Returns what of `values` the present features do not account for, row by row (least squares)."""
    return values - present @ solved(present, present.T @ values, ridge=1e-4).to(values)
