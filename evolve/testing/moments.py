"""A clause of the contract: an optimizer's averages stay with the parameters and positions that they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evolve.testing.snapshot import ModelSnapshot


def check_moments(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gradients: Mapping[str, Tensor],
    before: ModelSnapshot,
    where: str,
) -> bool:
    """Untouched parameters keep their state; that of a parameter that was cut stays with the positions it belongs to.

    That of one that took other values as a whole may begin anew. Where the function is preserved, the average of a
    position has to be its gradient in the changed model, or zero if the position is new. Elsewhere it has to be what
    the same position had before, found by its value; copies share it.

    Returns:
        Whether all averages of preserved functions are gradients: under a norm over the group, where what a copy does
        to the mean does not go by its share, they share what the position had before.
    """
    by_gradient = True
    largest = max((float(g.abs().max()) for g in gradients.values()), default=0.0)
    for key, parameter in model.named_parameters():
        old = before.states.get(key)
        if old is None:
            continue
        same_shape = parameter.shape == before.values[key].shape
        if parameter not in optimizer.state and same_shape and not torch.equal(parameter, before.values[key]):
            continue  # of other values as a whole: its state may begin anew
        state = optimizer.state[parameter]
        assert state.keys() == old.keys(), f"{where}: the optimizer keeps other things of '{key}'"
        assert torch.equal(state["step"], old["step"]), f"{where}: the step of '{key}' changed"
        average, square = state["exp_avg"], state["exp_avg_sq"]
        if same_shape:
            kept = all(torch.equal(state[k], v) for k, v in old.items())
            assert kept, f"{where}: the moments of '{key}' changed"
            continue
        slack = max(1e-4, 4 * torch.finfo(parameter.dtype).eps)
        assert torch.allclose(square, average**2, rtol=slack, atol=1e-12), f"{where}: the moments of '{key}' part"
        expected = torch.where(average == 0, 0, gradients[key]) if gradients else None
        if expected is None or not torch.allclose(average, expected, rtol=10 * slack, atol=slack * largest):
            by_gradient = False
            strays = _strays(before.values[key], old["exp_avg"], parameter, average)
            assert not strays, f"{where}: the moments of '{key}' are not with their weights"
    return by_gradient


def _strays(old: Tensor, old_average: Tensor, new: Tensor, average: Tensor) -> list[float]:
    """Returns the old values whose averages do not add up to what they were."""
    known = dict(zip(old.flatten().tolist(), old_average.flatten().tolist(), strict=True))
    totals: dict[float, float] = {}
    for value, part in zip(new.flatten().tolist(), average.flatten().tolist(), strict=True):
        totals[value] = totals.get(value, 0.0) + part
    slack = max(1e-4, 4 * torch.finfo(old.dtype).eps) * float(old_average.abs().max())
    counts = Counter(old.flatten().tolist())
    return [v for v, m in known.items() if v in totals and counts[v] == 1 and abs(totals[v] - m) > slack]
