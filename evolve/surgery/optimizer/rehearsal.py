"""Whether optimizers go on as they should after a change: a few steps are made and taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.surgery.optimizer.layers import all_layers, groups_of
from evolve.surgery.optimizer.places import as_float, tensors_in
from evolve.surgery.optimizer.trial import RARELY, Trial, set_rate, stepped

LATEST = 24  # steps within which a new parameter is to move


class Rehearsal:
    """Looks at optimizers that are not torch's own before a change, and again after it.

    Args:
        trial: That is settled, before the change.
        optimizers: The optimizers.
    """

    def __init__(self, trial: Trial, optimizers: Sequence[Optimizer]) -> None:
        self._trial = trial
        self._optimizers = optimizers
        self._drift = trial.drift()
        self._modes = trial.modes_fault()
        self._old = {id(p) for p in stepped(optimizers)}
        before = self._unmoved()
        self._at_rest = set() if isinstance(before, str) else {id(p) for p in before}

    def faults(self) -> list[str]:
        """Returns what is wrong after the change: an error, parameters that stay where they are, or that move alone."""
        if self._modes is None and (fault := self._trial.modes_fault()) is not None:
            return [f"the optimizer fails in eval() or train() ({fault})"]
        return self._steps() or self._unasked()

    def _steps(self) -> list[str]:
        """Whether it steps all parameters that it stepped before, and new ones."""
        unmoved = self._unmoved()
        if isinstance(unmoved, str):
            return [f"the optimizer fails in its next steps ({unmoved})"]
        unmoved = [p for p in unmoved if id(p) not in self._at_rest]
        if not unmoved or len(unmoved) == len(stepped(self._optimizers)):
            return []
        shape = tuple(unmoved[0].shape)
        return [f"the optimizer would not move {len(unmoved)} parameters (the first of shape {shape})"]

    def _unmoved(self) -> list[Parameter] | str:
        """Returns the parameters that a few steps leave where they are, or the error that there is.

        New parameters get no gradient in the first step, as behind a gate that is closed.
        """
        with self._trial.taken_back() as ins:
            for group in groups_of(self._optimizers):
                if float(group.get("lr", 1.0)) == 0:
                    set_rate(group, 1e-3)
            parameters = stepped(self._optimizers)
            new = {id(p) for p in parameters} - self._old
            values = [p.detach().clone() for p in parameters]
            marks = [self._mark(p) for p in parameters]
            fault = self._trial.fault_in(lambda: self._trial.steps(ins, 1.0, RARELY, new))
            moved = _moved(parameters, values)
            if fault is None and new and not all(moved):  # some wait until they have seen ten gradients
                fault = self._trial.fault_in(lambda: self._trial.steps(ins, 1.0, LATEST - RARELY))
                moved = _moved(parameters, values)
            if fault is not None:
                return fault
            # A step may be lost in the digits of a parameter: then its state tells, if that goes for old ones, too.
            if any(id(p) in self._old and not there for p, there in zip(parameters, moved, strict=True)):
                changed = [self._mark(p) != mark for p, mark in zip(parameters, marks, strict=True)]
                moved = [there or also for there, also in zip(moved, changed, strict=True)]
        return [p for p, there in zip(parameters, moved, strict=True) if not there]

    def _unasked(self) -> list[str]:
        """Whether it moves old parameters though there is next to nothing to be learned."""
        drift = self._trial.drift(self._old)
        if drift <= max(0.01, 5 * self._drift):
            return []
        return [
            f"with a learning rate near zero the optimizer would move a parameter by {drift:.2g} of its size, before "
            f"the change it was {self._drift:.2g}: it holds it to something (a norm, a copy) that cannot follow"
        ]

    def _mark(self, parameter: Parameter) -> list[Any]:
        """Something that changes when a step touches the state of a parameter."""
        found: list[Any] = []
        for layer in all_layers(self._optimizers):
            state = layer.state.get(parameter)
            found += [(path, float(as_float(value).abs().sum())) for path, value in tensors_in(state)]
            if isinstance(state, Mapping):
                found += [(key, value) for key, value in state.items() if isinstance(value, (int, float))]
        return found


def _moved(parameters: Sequence[Parameter], values: Sequence[Tensor]) -> list[bool]:
    return [not torch.equal(p.detach(), value) for p, value in zip(parameters, values, strict=True)]
