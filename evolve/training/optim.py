"""Optimizers and learning rate schedules of torch, by name."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import Self

from evolve.config import Named, OptionFaults, signature_faults
from evolve.errors import EvolveError, UnknownNameError, did_you_mean

# Arguments that say how long training lasts: filled in with the run's length where the user gives none.
_HORIZON = ("total_steps", "T_max", "total_iters")
# Arguments that are functions or other schedules, which a YAML file cannot say.
_UNSAYABLE = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


def optimizer_class(name: str) -> type[Optimizer]:
    """Returns `torch.optim.<name>`.

    Raises:
        UnknownNameError: If torch has no such optimizer.
    """
    known = [k for k, v in vars(torch.optim).items() if inspect.isclass(v) and issubclass(v, Optimizer)]
    known.remove("Optimizer")
    if name not in known:
        raise UnknownNameError(f"Unknown optimizer '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    cls: type[Optimizer] = getattr(torch.optim, name)
    return cls


def scheduler_class(name: str) -> type[LRScheduler]:
    """Returns `torch.optim.lr_scheduler.<name>`.

    Raises:
        UnknownNameError: If torch has no such schedule, or one that takes functions.
    """
    known = [
        k
        for k, v in vars(lr_scheduler).items()
        if inspect.isclass(v) and issubclass(v, LRScheduler) and k[0] != "_" and k != "LRScheduler"
    ]
    known = [k for k in known if k not in _UNSAYABLE]
    if name not in known:
        why = " It takes functions or other schedules; pass such a one in Python." if name in _UNSAYABLE else ""
        raise UnknownNameError(
            f"Unknown learning rate schedule '{name}'.{why}{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    cls: type[LRScheduler] = getattr(lr_scheduler, name)
    return cls


class OptimizerConfig(Named):
    """An optimizer of `torch.optim` and its options.

    Attributes:
        name: Class name, such as "SGD" or "AdamW".
        options: Its keyword arguments, such as `{lr: 0.1}`.
    """

    name: str = "AdamW"

    @model_validator(mode="after")
    def _options_are_known(self) -> Self:
        _check(optimizer_class, self, skip={"params"})
        return self

    def build(self, model: nn.Module) -> Optimizer:
        """Returns the optimizer over the model's trainable parameters."""
        cls: Any = optimizer_class(self.name)
        try:
            optimizer: Optimizer = cls([p for p in model.parameters() if p.requires_grad], **self.options)
        except (ValueError, TypeError, RuntimeError) as error:
            raise EvolveError(f"Optimizer {self.name} refuses its options {self.options}: {error}") from error
        return optimizer


class LrScheduleConfig(Named):
    """A schedule of `torch.optim.lr_scheduler` and its options.

    Attributes:
        name: Class name, such as "OneCycleLR".
        interval: Whether it moves with each "step" or with each "epoch"; a length that it asks for (`total_steps`,
            `T_max`, `total_iters`) is the whole run's in this unit where the options give none. It moves as far as the
            budget is spent: where FLOPs or seconds are the budget and steps become dearer, by more than 1 a step.
        options: Its keyword arguments.
    """

    interval: Literal["step", "epoch"] = "step"

    @model_validator(mode="after")
    def _options_are_known(self) -> Self:
        _check(scheduler_class, self, skip={"optimizer", "last_epoch"}, provided=_HORIZON)
        if self.name == "ReduceLROnPlateau" and self.interval == "step":
            raise OptionFaults([(("interval",), "ReduceLROnPlateau looks at the validation loss: use 'epoch'.")])
        return self

    def build(self, optimizer: Optimizer, ticks: int) -> LRScheduler:
        """Returns the schedule for a run of so many ticks (see `Budget.ticks`), or epochs if it moves with these."""
        cls: Any = scheduler_class(self.name)
        options = dict(self.options)
        for key in _HORIZON:
            lasts = key in inspect.signature(cls).parameters and key not in options
            if lasts and not (key == "total_steps" and "epochs" in options):
                options[key] = ticks
        try:
            scheduler: LRScheduler = cls(optimizer, **options)
        except (ValueError, TypeError, KeyError) as error:
            raise EvolveError(
                f"Learning rate schedule {self.name} refuses its options {options} with {type(optimizer).__name__}: "
                f"{error}"
            ) from error
        return scheduler

    def advance(self, scheduler: LRScheduler, tick: int, val_loss: float | None = None) -> None:
        """Moves the schedule on to a tick; one that looks at the validation loss takes it in."""
        if isinstance(scheduler, ReduceLROnPlateau):
            if val_loss is not None:
                scheduler.step(val_loss)
            return
        while scheduler.last_epoch < tick:
            scheduler.step()


def _check(find: Any, config: Named, skip: set[str], provided: tuple[str, ...] = ()) -> None:
    try:
        cls = find(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    options = {**config.options, **{k: 0 for k in provided if k in inspect.signature(cls).parameters}}
    faults = signature_faults(cls, options, skip=skip, finite=True)
    if faults:
        raise OptionFaults([(("options", *path), message) for path, message in faults])
