"""How much each member of a group matters: the criteria that `narrow` ranks by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evolve.errors import NotApplicable, NotYetApplicable
from evolve.operators.members import Members

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """A way to score members; the smallest go first.

    Attributes:
        weights: Scores the members of a group by what the model holds, in float64 on the CPU; None where it takes
            gradients.
        gradients: The same by the gradients of one batch; scores of several batches are averaged.
        absolute: Whether scores of different groups can be compared as they are. Others are divided by the mean of
            their group where all groups are ranked together.
    """

    weights: Callable[[Members], Tensor] | None = None
    gradients: Callable[[Members, Gradients], Tensor] | None = None
    absolute: bool = False


def scores(name: str, groups: Sequence[Members], batches: Iterable[Gradients]) -> list[Tensor | NotApplicable]:
    """Scores the members of some groups.

    Args:
        name: A key of `CRITERIA`.
        groups: The groups.
        batches: The gradients of the loss on each batch, made one after the other where the criterion takes any.

    Returns:
        For each group its scores, or why it has none.
    """
    criterion = CRITERIA[name]
    if criterion.weights is not None:
        found = [_or_objection(criterion.weights, group) for group in groups]
        return [_finite(name, *pair) for pair in zip(groups, found, strict=True)]
    assert criterion.gradients is not None
    sums: list[Tensor | NotApplicable] = []
    count = 0
    for gradients in batches:
        found = [_or_objection(criterion.gradients, group, gradients) for group in groups]
        sums = [_added(*pair) for pair in zip(sums, found, strict=True)] if count else found
        count += 1
    means = [one / count if isinstance(one, Tensor) else one for one in sums]
    return [_finite(name, *pair) for pair in zip(groups, means, strict=True)]


def _finite(name: str, group: Members, scores: Tensor | NotApplicable) -> Tensor | NotApplicable:
    """Returns scores that say who goes; NaN, of weights or gradients that are NaN, would be anybody."""
    if isinstance(scores, NotApplicable) or scores.isfinite().all():
        return scores
    return NotYetApplicable(f"criterion: {name} scores '{group.group.name}' with NaN or infinity, which ranks nobody.")


def _or_objection(score: Callable[..., Tensor], *arguments: object) -> Tensor | NotApplicable:
    try:
        return score(*arguments)
    except NotApplicable as objection:
        return objection


def _added(one: Tensor | NotApplicable, other: Tensor | NotApplicable) -> Tensor | NotApplicable:
    """A batch may leave out parts of a model, such as an expert."""
    if isinstance(one, NotApplicable):
        return other
    return one if isinstance(other, NotApplicable) else one + other


def magnitude(group: Members) -> Tensor:
    """L2 norm of each member's weights, those of each tensor scaled to a mean of 1 (Li et al. 2017)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for place, _ in group.matrices():
        norms = place.members(group.held.squares(place.name, place.axis)).sum(dim=1).sqrt()
        total += norms / norms.mean().clamp(min=1e-12)
    return total


def lamp(group: Members) -> Tensor:
    """Squared magnitude over that of all members that are no smaller (LAMP, Lee et al. 2021, of whole members)."""
    squares, order = magnitude(group).square().sort(stable=True)
    left = squares.flip(0).cumsum(0).flip(0)  # of this member and all larger ones
    return torch.empty_like(squares).scatter_(0, order, squares / left.clamp(min=1e-12))


def fpgm(group: Members) -> Tensor:
    """Sum of the distances to all other members, those of each tensor scaled to a mean of 1 (FPGM, He et al. 2019).

    The member nearest to all others is the one that they can replace.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for place, tensor in group.matrices():
        rows = _wide(tensor).movedim(place.axis, 0)[place.index.to(tensor.device)].flatten(1)
        distances = torch.cdist(rows, rows).sum(dim=1).double().cpu()
        total += distances / distances.mean().clamp(min=1e-12)
    return total


def batch_norm(group: Members) -> Tensor:
    """Mean |scale| of each member in the BatchNorms that it passes through (network slimming, Liu et al. 2017)."""
    held = group.held
    places = [place for place in group.places if place.name in held.scales]
    if not places:
        raise NotApplicable(
            f"criterion: batch_norm needs a BatchNorm with scales, and '{group.name}' passes through none."
        )
    scales = [place.members(held.parameters[place.name].abs()).mean(dim=1) for place in places]
    return torch.stack(scales).mean(dim=0)


def random(group: Members) -> Tensor:
    """A number between 0 and 1 for each member, drawn from torch's generator."""
    return torch.rand(group.size, dtype=torch.float64)


def taylor(group: Members, gradients: Gradients) -> Tensor:
    """|Sum of weight times gradient|: what the loss changes by to first order without it (Molchanov et al. 2017)."""
    return _over_places(group, gradients, "taylor", lambda weight, gradient: weight * gradient).abs().sum(dim=0)


def hessian(group: Members, gradients: Gradients) -> Tensor:
    """Half the sum of squared weight times curvature: optimal brain damage (LeCun et al. 1990).

    The curvature of the loss along each weight is taken to be the square of its gradient, as averaged over batches
    (the diagonal of the empirical Fisher matrix).
    """
    halves = _over_places(group, gradients, "hessian", lambda weight, gradient: (weight * gradient).square() / 2)
    return halves.sum(dim=0)


def _over_places(
    group: Members, gradients: Gradients, criterion: str, of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Sums a product of weight and gradient over each member's weights, place by place: (places, members)."""
    pairs = [(place, tensor, gradients.get(place.name)) for place, tensor in group.matrices()]
    found = [
        place.members(_over_rest(of(_wide(tensor), _wide(gradient)), place.axis)).sum(dim=1)
        for place, tensor, gradient in pairs
        if gradient is not None
    ]
    if not found:
        raise NotYetApplicable(
            f"criterion: {criterion} needs gradients, and the loss gives no weight of '{group.name}' any."
        )
    return torch.stack(found)


def _over_rest(tensor: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one."""
    rest = [dim for dim in range(tensor.dim()) if dim != axis]
    return tensor.sum(dim=rest) if rest else tensor


def _wide(tensor: Tensor) -> Tensor:
    """Returns a tensor in float32 at least, where squares of small numbers are no zeros."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


CRITERIA = {
    "magnitude": Criterion(magnitude),
    "lamp": Criterion(lamp, absolute=True),
    "fpgm": Criterion(fpgm),
    "batch_norm": Criterion(batch_norm, absolute=True),
    "random": Criterion(random, absolute=True),
    "taylor": Criterion(gradients=taylor, absolute=True),
    "hessian": Criterion(gradients=hessian, absolute=True),
}
