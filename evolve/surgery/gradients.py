"""Gradients that stand between two backward passes, carried through a change of the parameters they belong to."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import Parameter

from evolve.surgery.optimizer import Changed
from evolve.surgery.resize import recut_state


class Gradients:
    """Takes the gradients off a model, so that a change may run backward passes, and puts them back afterwards.

    Args:
        model: Before the change.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(parameter, parameter.grad) for parameter in model.parameters()]
        for parameter, _ in self._kept:
            parameter.grad = None

    def put_back(self, changed: Iterable[Changed]) -> str:
        """Gives parameters their gradients; those of parameters that changed are cut as averages of gradients are.

        So a gradient that is being accumulated over several batches stays right: a copy of a unit that is read by a
        share has had that share of the gradient.

        Args:
            changed: What happened to parameters.

        Returns:
            A sentence for the log, "" where no gradient was cut.
        """
        by_id = {id(change.old): change for change in changed}
        followed = 0
        for parameter, gradient in self._kept:
            change = by_id.get(id(parameter))
            if change is None:
                parameter.grad = gradient
                continue
            parameter.grad = None
            if gradient is not None and change.new.requires_grad:
                change.new.grad = _carried(gradient, change)
                followed += change.new.grad is not None
        return f"Gradients of {followed} parameters were cut along." if followed else ""


def _carried(gradient: Tensor, change: Changed) -> Tensor | None:
    new: Parameter = change.new
    if change.cuts:
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        carried = recut_state(dense, change.cuts, power=1)
        return carried.to_sparse(gradient.sparse_dim()) if gradient.is_sparse else carried
    if tuple(new.shape) == change.shape:
        return gradient.to(new.device)
    if new.dim() != len(change.shape) or gradient.is_sparse:
        return None
    carried = gradient.new_zeros(new.shape)
    common = tuple(slice(min(a, b)) for a, b in zip(new.shape, change.shape, strict=True))
    carried[common] = gradient[common]
    return carried
