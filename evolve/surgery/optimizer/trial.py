"""Tries an optimizer whose code nobody here knows: what a step does to its state, and whether a step works at all.

The steps are made in place, on gradients that are made up; everything is put back afterwards.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.errors import described
from evolve.runtime.generators import preserved_rng
from evolve.runtime.memory import out_of_memory
from evolve.surgery.optimizer.layers import all_layers, groups_of, held_by
from evolve.surgery.optimizer.remembered import OptimizerState

RARELY = 7  # steps within which most optimizers do what they do only now and then (Lookahead: every fifth or sixth)
RATE = 1e-6  # a learning rate at which parameters stay where they are
Step = Callable[[Optimizer, Callable[[], Tensor]], Any]


@dataclass(frozen=True)
class StandIn:
    """What stands for a parameter and its gradient in a trial.

    Attributes:
        value: Of the parameter.
        gradient: Of large and small rows along each axis.
        profiles: For each axis the logarithm of how large the gradient is along it.
    """

    value: Tensor
    gradient: Tensor
    profiles: Sequence[Tensor]


def stand_ins(parameters: Sequence[Parameter]) -> dict[int, StandIn]:
    """Returns made-up values and gradients by the id of the parameter; the same ones each time."""
    found = {}
    for number, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(number)
        profiles = [torch.rand(size, generator=generator) * 3 - 1.5 for size in parameter.shape]
        size = torch.zeros(())
        for axis, profile in enumerate(profiles):
            size = size + profile.view([-1 if a == axis else 1 for a in range(parameter.dim())])
        sign = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, -1.0, 1.0)
        value = torch.randn(parameter.shape, generator=generator)
        gradient = 0.1 * size.exp() * sign
        found[id(parameter)] = StandIn(value.to(parameter), gradient.to(parameter), profiles)
    return found


def _plainly(optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
    closure()
    type(optimizer).step(optimizer)


def _with_closure(optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
    closure()
    type(optimizer).step(optimizer, closure)  # type: ignore[arg-type]


def _in_train_mode(step: Step) -> Step:
    def stepped(optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
        optimizer.train()  # type: ignore[attr-defined]
        step(optimizer, closure)

    return stepped


class Trial:
    """Steps optimizers in place and takes it all back.

    Args:
        optimizers: That are to be tried.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self.fault: str | None = None
        self._ways: dict[int, Step] = {}

    @contextmanager
    def taken_back(self) -> Iterator[dict[int, StandIn]]:
        """Puts stand-ins in the place of parameters; afterwards everything is as before."""
        parameters = held_by(self._optimizers)
        before = [(p, p.detach().clone(), p.grad) for p in parameters]
        state = OptimizerState(self._optimizers)
        hooks = [vars(layer).get(name) for layer in all_layers(self._optimizers) for name in _HOOKS]
        ins = stand_ins(parameters)
        with preserved_rng(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                for table in hooks:  # a user's hooks are for steps that count
                    if table:
                        table.clear()
                yield ins
            finally:
                state.restore()
                with torch.no_grad():
                    for parameter, value, gradient in before:
                        parameter.grad = gradient
                        parameter.data.copy_(value)

    def settle(self) -> bool:
        """Finds how each optimizer is stepped: plainly, with a closure, in its train mode. False where none works."""
        for optimizer in self._optimizers:
            faults = []
            for step in self._candidates(optimizer):
                with self.taken_back() as ins:
                    closure = _closure([optimizer], ins, 1.0)
                    fault = self.fault_in(partial(step, optimizer, closure))
                if fault is None:
                    self._ways[id(optimizer)] = step
                    break
                faults.append(fault)
            else:
                self.fault = f"a step of {type(optimizer).__name__} on made-up gradients fails ({faults[0]})"
                return False
        return True

    def _candidates(self, optimizer: Optimizer) -> list[Step]:
        ways: list[Step] = [_plainly, _with_closure]
        return [*ways, *map(_in_train_mode, ways)] if callable(getattr(optimizer, "train", None)) else ways

    def steps(self, ins: Mapping[int, StandIn], scale: float, count: int, late: Collection[int] = ()) -> None:
        """Makes steps on gradients of a scale; raises what the optimizers raise.

        Args:
            ins: What the gradients are made from.
            scale: Of the gradients.
            count: How many steps.
            late: Ids of parameters whose gradient is zero in the first step, as it is behind a gate that is closed.
        """
        for number in range(count):
            for optimizer in self._optimizers:
                self._ways[id(optimizer)](optimizer, _closure([optimizer], ins, scale, late if number == 0 else ()))

    def begin_anew(self, ins: Mapping[int, StandIn]) -> None:
        """Gives all parameters their stand-ins, empties all states and counts of steps, and stills the learning."""
        with torch.no_grad():
            for parameter in held_by(self._optimizers):
                parameter.data.copy_(ins[id(parameter)].value)
        for layer in all_layers(self._optimizers):
            layer.state.clear()
        self._still()
        for group in groups_of(self._optimizers):
            for key in ("step", "k", "counter"):
                if type(group.get(key)) is int:
                    group[key] = 0

    def _still(self) -> None:
        for group in groups_of(self._optimizers):
            for key, value in group.items():
                if key == "lr":
                    set_rate(group, RATE)
                elif "decay" in key and isinstance(value, float):
                    group[key] = 0.0

    def drift(self, among: Collection[int] | None = None) -> float:
        """Returns by how much parameters move, at most and relative to their size, at a learning rate near zero.

        Args:
            among: Ids of the parameters to look at; all if None.

        Returns:
            The figure, or infinity if the optimizers fail.
        """
        with self.taken_back() as ins:
            self._still()
            parameters = [p for p in stepped(self._optimizers) if among is None or id(p) in among]
            values = [p.detach().to(torch.float32, copy=True) for p in parameters]
            if self.fault_in(lambda: self.steps(ins, 1.0, RARELY)) is not None:
                return math.inf
            moves = [
                float((p.detach().float() - value).norm() / (value.norm() + 0.01 * value.numel() ** 0.5))
                for p, value in zip(parameters, values, strict=True)
            ]
        return max(moves, default=0.0)

    def modes_fault(self) -> str | None:
        """Returns how `eval()` and `train()` fail, which optimizers with averages have; None where they work."""
        with self.taken_back():
            for one in self._optimizers:
                for mode in (getattr(one, name, None) for name in ("eval", "train")):
                    if callable(mode) and (fault := self.fault_in(mode)) is not None:
                        return fault
        return None

    @staticmethod
    def fault_in(work: Callable[[], Any]) -> str | None:
        """Returns the error that somebody's optimizer raises, in one line; None if it raises none."""
        try:
            work()
        except Exception as error:  # whatever it is, it is what we want to know
            if out_of_memory(error):
                raise
            return described(error).splitlines()[0][:200]  # some print whole parameters
        return None


def stepped(optimizers: Sequence[Optimizer]) -> list[Parameter]:
    """Returns the trainable parameters in the groups that the user sees: those inside may step others as well."""
    groups = [group for one in optimizers for group in one.param_groups]
    return list({id(p): p for group in groups for p in group["params"] if p.requires_grad}.values())


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Gives a group a learning rate, which may be a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _closure(
    optimizers: Sequence[Optimizer], ins: Mapping[int, StandIn], scale: float, late: Collection[int] = ()
) -> Callable[[], Tensor]:
    """Returns what sets gradients as a backward pass would, with a graph, for optimizers that look at curvature."""
    parameters = [p for p in held_by(optimizers) if p.requires_grad and id(p) in ins]

    def closure() -> Tensor:
        with torch.enable_grad():
            loss = torch.ones(())
            for parameter in parameters:
                gradient = ins[id(parameter)].gradient * (0.0 if id(parameter) in late else scale)
                parameter.grad = gradient + 1e-3 * (parameter - parameter.detach())
                loss = loss + 1e-3 * gradient.float().abs().sum().cpu()
        return loss.detach().requires_grad_()

    return closure


_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
