"""New parts of parameters, and what is different for them in the first steps: learning rate, weight decay, a watch.

A part is an entry of a mask, not a parameter: where `widen` adds channels to a weight, its old channels train on as
they did. So nothing here is done with parameter groups. A step of any optimizer is made as it is, and what it did to
the new parts is then scaled, which is what another learning rate does where an optimizer multiplies its update by it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from evolve.care.config import CareConfig
from evolve.errors import EvolveError
from evolve.surgery.parts import follow, renamed_keys
from evolve.surgery.resize import Cut

logger = logging.getLogger(__name__)

# Of torch's optimizers, those that decay weights by themselves and, in one version or another, do not say so.
_DECOUPLED = {"Adafactor", "AdamW", "Muon"}


@dataclass
class NewParts:
    """What one mutation brought.

    Attributes:
        born: Steps that had been made by then.
        parts: Masks of what is new, by parameter.
        reached: What of it has had a gradient.
    """

    born: int
    parts: dict[str, Tensor]
    reached: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class _Held:
    """A parameter before a step: its value, what of it is new, and what will be made of the step there."""

    parameter: nn.Parameter
    value: Tensor
    mask: Tensor
    factor: float
    undecayed: float  # learning rate times weight decay, of a decay that is to be undone
    optimizer: Optimizer


class NewParameters:
    """All new parts that are still cared for.

    Args:
        config: What care they get.
        optimizers: Of the model.

    Raises:
        EvolveError: If weight decay is to be suspended in an optimizer that is not torch's.
    """

    def __init__(self, config: CareConfig, optimizers: Sequence[Optimizer]) -> None:
        foreign = [type(o).__name__ for o in optimizers if not type(o).__module__.startswith("torch.optim")]
        if config.decay_grace and foreign:
            raise EvolveError(
                f"care.decay_grace knows how the optimizers of torch.optim decay weights, not how {foreign[0]} does. "
                "Set it to 0, or use one of torch's."
            )
        self._config = config
        self._optimizers = list(optimizers)
        self._steps = 0
        self._brought: list[NewParts] = []
        self._held: list[_Held] = []
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._hooks: list[RemovableHandle] = []

    def add(self, model: nn.Module, parts: Mapping[str, Tensor], cuts: Sequence[Cut] = ()) -> None:
        """Takes in what a mutation brought; older new parts follow what it did to their parameters.

        Args:
            model: After the mutation.
            parts: Masks of what is new, by parameter; see `surgery.parts.new_parts`.
            cuts: What was done to axes of parameters.
        """
        for older in self._brought:
            older.parts = _followed(model, older.parts, cuts)
            older.reached = _followed(model, older.reached, cuts)
        if parts and self._longest:
            self._brought.append(NewParts(self._steps, dict(parts)))

    def rename(self, names: Mapping[str, str]) -> None:
        """Keeps parts under the names that their parameters have now: old names, with the new ones."""
        for parts in self._brought:
            parts.parts = renamed_keys(parts.parts, names)
            parts.reached = renamed_keys(parts.reached, names)

    def before_step(self, model: nn.Module) -> None:
        """To be called when the gradients are complete, on their own scale.

        What the step does to new parts is corrected as soon as the optimizer has made it, so that averages and
        evaluations that follow see the corrected weights.
        """
        if not self._brought:  # and so nothing is held
            return
        self._clean_up()
        parameters = dict(model.named_parameters())
        groups = {id(p): (o, group) for o in self._optimizers for group in o.param_groups for p in group["params"]}
        if self._config.rewarm is not None and self._config.rewarm.scope == "all":
            self._scale_rates(self._factor(self._brought[-1]))
        for parts in self._brought:
            age = self._steps - parts.born
            for name, mask in parts.parts.items():
                parameter = parameters[name]
                optimizer, group = groups.get(id(parameter), (None, None))
                if optimizer is None or group is None:
                    continue
                mask = parts.parts[name] = mask.to(parameter.device)
                if age < self._config.watch:
                    _note_gradient(parts, name, parameter)
                new = self._config.rewarm is not None and self._config.rewarm.scope == "new"
                factor = self._factor(parts) if new else 1.0
                undecayed = self._suspend_decay(optimizer, group, parameter, mask) if self._graceful(age) else 0.0
                if factor != 1 or undecayed:
                    held = _Held(parameter, parameter.detach().clone(), mask, factor, undecayed, optimizer)
                    self._held.append(held)
        if self._held:
            self._hooks = [
                optimizer.register_step_post_hook(lambda stepped, *_: self._correct(stepped))
                for optimizer in self._optimizers
                if hasattr(optimizer, "_optimizer_step_post_hooks")  # wrappers such as Accelerate's have none
            ]

    def after_step(self) -> None:
        """To be called when the optimizers have moved the parameters."""
        if not self._brought:
            return
        for optimizer in self._optimizers:
            self._correct(optimizer)  # where it has no hooks
        self._clean_up()
        self._steps += 1
        self._tell()
        self._brought = [parts for parts in self._brought if self._steps - parts.born < self._longest]

    @torch.no_grad()
    def _correct(self, optimizer: Optimizer) -> None:
        """Scales what a step has done to new parts."""
        for held in [held for held in self._held if held.optimizer is optimizer]:
            moved = held.parameter - held.value
            if held.undecayed and bool(moved.any()):  # a scaler that skips a step decays nothing either
                moved += held.undecayed * held.value
            held.parameter.copy_(torch.where(held.mask, held.value + held.factor * moved, held.parameter))
            self._held.remove(held)

    def _clean_up(self) -> None:
        """Ends the care of a step, also of one that broke off or that a gradient scaler has skipped."""
        for hook in self._hooks:
            hook.remove()
        for group, rate in self._rates:
            group["lr"] = rate
        self._held, self._rates, self._hooks = [], [], []

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as tensors and numbers."""
        return {"steps": self._steps, "brought": [vars(parts) for parts in self._brought]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self._clean_up()  # of a step that was not finished
        self._steps = state["steps"]
        self._brought = [NewParts(o["born"], dict(o["parts"]), dict(o["reached"])) for o in state["brought"]]

    @property
    def _longest(self) -> int:
        """Steps after which nothing is done for a part any more."""
        rewarm = self._config.rewarm
        return max(self._config.decay_grace, self._config.watch, rewarm.steps if rewarm is not None else 0)

    def _factor(self, parts: NewParts) -> float:
        """What the learning rate of a parts is multiplied with."""
        rewarm = self._config.rewarm
        age = self._steps - parts.born
        if rewarm is None or age >= rewarm.steps:
            return 1.0
        return rewarm.start + (1 - rewarm.start) * age / rewarm.steps

    def _graceful(self, age: int) -> bool:
        return age < self._config.decay_grace

    def _scale_rates(self, factor: float) -> None:
        if factor != 1:
            self._rates = [(group, group["lr"]) for optimizer in self._optimizers for group in optimizer.param_groups]
            for group, rate in self._rates:
                group["lr"] = rate * factor

    def _suspend_decay(
        self, optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter, mask: Tensor
    ) -> float:
        """Takes weight decay out of a gradient, or returns what will have to be added after the step."""
        decay = float(group.get("weight_decay", 0.0))
        if not decay or parameter.grad is None:
            return 0.0
        if group.get("decoupled_weight_decay", False) or type(optimizer).__name__ in _DECOUPLED:
            return float(group["lr"]) * decay
        sign = -1.0 if group.get("maximize", False) else 1.0  # the optimizer turns the gradient round, then adds decay
        parameter.grad.sub_(torch.where(mask, sign * decay * parameter.detach(), 0.0))
        return 0.0

    def _tell(self) -> None:
        """Warns of new units of a parts that has been watched long enough."""
        for parts in self._brought:
            if self._steps - parts.born != self._config.watch:
                continue
            dead = {
                n: mask & ~parts.reached.get(n, torch.zeros_like(mask)).to(mask.device)
                for n, mask in parts.parts.items()
            }
            if told := [units for name, mask in parts.parts.items() if (units := _told(name, mask, dead[name]))]:
                logger.warning(
                    "No gradient has come to what is new in the %d steps since a mutation: %s. It does not learn. "
                    "Inputs that are never active, a zero on both sides or a detach are the usual reasons.",
                    self._config.watch,
                    "; ".join(told),
                )


def _followed(model: nn.Module, masks: Mapping[str, Tensor], cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """Returns masks after a mutation; those of parameters that went, or changed in a way that is not told, are gone."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    cut = {n: follow(mask, [cut for cut in cuts if cut.name == n], fresh=False) for n, mask in masks.items()}
    return {name: mask for name, mask in cut.items() if mask.shape == shapes.get(name)}


def _note_gradient(parts: NewParts, name: str, parameter: nn.Parameter) -> None:
    if parameter.grad is None:
        return
    gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
    seen = parts.reached.get(name)
    parts.reached[name] = (gradient != 0) if seen is None else seen.to(gradient.device) | (gradient != 0)


def _told(name: str, mask: Tensor, dead: Tensor) -> str | None:
    """Names the new units of a parameter in which nothing is alive; None where there are none.

    A single value without a gradient is common (two units that are never active together) and no fault of a unit.
    """
    if bool(dead.all()):
        return f"the new parameter '{name}'"
    for axis in range(min(dead.dim(), 2)):  # outputs, then inputs
        rest = [other for other in range(dead.dim()) if other != axis]
        new, lost = (mask.all(dim=rest), dead.all(dim=rest)) if rest else (mask, dead)
        if units := (new & lost).nonzero().flatten().tolist():
            listed = ", ".join(map(str, units[:8])) + (", ..." if len(units) > 8 else "")
            of = "" if axis == 0 else f" of axis {axis}"
            return f"{len(units)} of {int(new.sum())} new units of '{name}' (positions {listed}{of})"
    return None
