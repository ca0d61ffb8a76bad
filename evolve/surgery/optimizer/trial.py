"""Tries an optimizer whose code nobody here knows: what a step does to its state, and whether a step works at all.

The steps are made in place, on gradients that are made up; everything is put back afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.runtime.generators import preserved_rng
from evolve.runtime.memory import out_of_memory
from evolve.surgery.optimizer.layers import all_layers, groups_of, held_by
from evolve.surgery.optimizer.remembered import OptimizerState

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
                    fault = self._tried(optimizer, step, ins)
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

    def _tried(self, optimizer: Optimizer, step: Step, ins: Mapping[int, StandIn]) -> str | None:
        try:
            step(optimizer, _closure([optimizer], ins, 1.0))
        except Exception as error:  # whatever somebody's optimizer raises is what we want to know
            if out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}"
        return None

    def steps(self, ins: Mapping[int, StandIn], scale: float, count: int) -> None:
        """Makes steps on gradients of a scale; raises what the optimizers raise."""
        for _ in range(count):
            for optimizer in self._optimizers:
                self._ways[id(optimizer)](optimizer, _closure([optimizer], ins, scale))

    def begin_anew(self, ins: Mapping[int, StandIn]) -> None:
        """Gives all parameters their stand-ins, empties all states and counts of steps, and stills the learning."""
        with torch.no_grad():
            for parameter in held_by(self._optimizers):
                parameter.data.copy_(ins[id(parameter)].value)
        for layer in all_layers(self._optimizers):
            layer.state.clear()
        for group in groups_of(self._optimizers):
            for key, value in group.items():
                if key == "lr":
                    _set(group, key, value, RATE)
                elif "decay" in key and isinstance(value, float):
                    group[key] = 0.0
                elif key in ("step", "k", "counter") and type(value) is int:
                    group[key] = 0


def rehearse(trial: Trial, optimizers: Sequence[Optimizer], count: int = 7) -> list[str]:
    """Makes a few steps with optimizers as they stand and takes them back.

    Args:
        trial: That was settled before the change.
        optimizers: The same, after the change.
        count: Steps: some optimizers look at a parameter every sixth step only.

    Returns:
        What is wrong: an error, or parameters that neither move nor leave anything in the optimizer's state.
    """
    with trial.taken_back() as ins:
        for group in groups_of(optimizers):
            if float(group.get("lr", 1.0)) == 0:
                _set(group, "lr", group["lr"], 1e-3)
        parameters = [p for p in held_by(optimizers) if p.requires_grad]
        values = [p.detach().clone() for p in parameters]
        marks = [_mark(optimizers, p) for p in parameters]
        try:
            trial.steps(ins, 1.0, count)
        except Exception as error:  # whatever somebody's optimizer raises is what we want to know
            if out_of_memory(error):
                raise
            return [f"the optimizer fails in its next steps ({type(error).__name__}: {error})"]
        moved = [
            not torch.equal(p.detach(), value) or _mark(optimizers, p) != mark
            for p, value, mark in zip(parameters, values, marks, strict=True)
        ]
    if any(moved) and not all(moved):
        shape = tuple(parameters[moved.index(False)].shape)
        return [f"the optimizer would not move {moved.count(False)} parameters (the first of shape {shape})"]
    return []


def _closure(optimizers: Sequence[Optimizer], ins: Mapping[int, StandIn], scale: float) -> Callable[[], Tensor]:
    """Returns what sets gradients as a backward pass would, with a graph, for optimizers that look at curvature."""
    parameters = [p for p in held_by(optimizers) if p.requires_grad and id(p) in ins]

    def closure() -> Tensor:
        with torch.enable_grad():
            loss = torch.ones(())
            for parameter in parameters:
                gradient = ins[id(parameter)].gradient * scale
                parameter.grad = gradient + 1e-3 * (parameter - parameter.detach())
                loss = loss + 1e-3 * gradient.float().abs().sum().cpu()
        return loss.detach().requires_grad_()

    return closure


def _mark(optimizers: Sequence[Optimizer], parameter: Parameter) -> list[Any]:
    """Something that changes when a step touches the state of a parameter."""
    found: list[Any] = []
    for layer in all_layers(optimizers):
        state = layer.state.get(parameter) or {}
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor):
                found.append((key, float(value.detach().float().abs().sum())))
            elif isinstance(value, (int, float)):
                found.append((key, value))
            else:
                found.append((key, None))
    return found


def _set(group: dict[str, Any], key: str, value: Any, rate: float) -> None:
    if isinstance(value, Tensor):
        value.fill_(rate)
    else:
        group[key] = rate


_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
