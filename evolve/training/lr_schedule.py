"""Learning rate schedules by name, laid over the budget of a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import Self

from evolve.budget import whole
from evolve.config import KeyPath, Named, OptionFaults, signature_faults
from evolve.config.options import Monitor
from evolve.errors import EvolveError, UnknownNameError, did_you_mean
from evolve.training.lr_curves import StableDecayLR, WarmupLR
from evolve.training.refused import refused_options

_OWN: dict[str, type[LRScheduler]] = {"wsd": StableDecayLR}
# Arguments that say how long training lasts: filled in with the run's length where the user gives none.
_HORIZON = ("total_steps", "T_max", "total_iters")
# Arguments that are functions or other schedules, which a YAML file cannot say.
_UNSAYABLE = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
# Arguments that count steps, of which torch lets some be 0 or less, and fails or does nothing sensible later.
_COUNTS = {*_HORIZON, "step_size", "T_0", "T_mult", "epochs", "steps_per_epoch", "step_size_up", "step_size_down"}
# Schedules that set rates of their own in place of those of the groups, and the option that says which.
_ABSOLUTE = {"OneCycleLR": "max_lr", "CyclicLR": "max_lr"}
# Options that may be a list with a value for each parameter group.
_BY_GROUP = {"max_lr", "base_lr", "min_lr", "base_momentum", "max_momentum"}
_TRIED_STEPS = 100  # length of a schedule that is made to see whether it can be


def scheduler_class(name: str) -> type[LRScheduler]:
    """Returns `wsd`, or `torch.optim.lr_scheduler.<name>`.

    Raises:
        UnknownNameError: If there is no such schedule, or it is one that takes functions.
    """
    known = [
        k
        for k, v in vars(lr_scheduler).items()
        if inspect.isclass(v) and issubclass(v, LRScheduler) and k[0] != "_" and k != "LRScheduler"
    ]
    known = [*_OWN, *(k for k in known if k not in _UNSAYABLE)]
    if name not in known:
        why = " It takes functions or other schedules; pass such a one in Python." if name in _UNSAYABLE else ""
        raise UnknownNameError(
            f"Unknown learning rate schedule '{name}'.{why}{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    cls: type[LRScheduler] = _OWN.get(name) or getattr(lr_scheduler, name)
    return cls


class LrScheduleConfig(Named):
    """A schedule of `torch.optim.lr_scheduler`, or `wsd`, and its options.

    Attributes:
        name: Class name, such as "OneCycleLR", or "wsd": the rate is held, and falls at the end.
        interval: Whether it moves with each "step" or with each "epoch"; a length that it asks for (`total_steps`,
            `T_max`, `total_iters`) is the run's without the warm-up, in this unit, where the options give none. It
            moves as far as the budget is spent: where FLOPs or seconds are the budget and steps become dearer, by more
            than 1 a step.
        warmup: Optimizer steps, or a part of the budget if below 1, in which the learning rate first rises in a line to
            where the schedule begins; null for none. Steps are counted as the schedule counts them.
        options: Its keyword arguments.
    """

    interval: Literal["step", "epoch"] = "step"
    warmup: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _options_are_known(self) -> Self:
        try:
            cls: Any = scheduler_class(self.name)
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        provided = {k: 1 for k in _HORIZON if k in inspect.signature(cls).parameters}
        faults = signature_faults(cls, {**provided, **self.options}, skip={"optimizer", "last_epoch"}, finite=True)
        faults = faults or _range_faults(self.options)
        if not faults:
            faults = refused_options(self._tried, self.options)
        if faults:
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        if self.name == "ReduceLROnPlateau" and self.interval == "step":
            raise OptionFaults([(("interval",), "ReduceLROnPlateau looks at what an evaluation finds: use 'epoch'.")])
        return self

    def build(
        self, optimizer: Optimizer, ticks: int, epoch_steps: int = 1, mode: Literal["min", "max"] = "min"
    ) -> LRScheduler:
        """Returns the schedule for a run.

        Args:
            optimizer: Whose learning rates it moves.
            ticks: Length of the run, see `Budget.ticks`.
            epoch_steps: Optimizer steps of an epoch.
            mode: Which way is better, for one that looks at the run's monitor.

        Raises:
            EvolveError: If the options do not fit the optimizer or the length of the run.
        """
        warmup = self._warmup(ticks)
        if warmup >= ticks:
            raise EvolveError(
                f"lr_schedule.warmup: {warmup} steps of warm-up leave nothing of a run of {ticks}. Give fewer, or a "
                "part of the budget such as 0.05."
            )
        self._check_rates(optimizer)
        options = self._filled(self._length(ticks - warmup, epoch_steps))
        if self.name == "ReduceLROnPlateau":
            options.setdefault("mode", mode)
        try:
            scheduler: LRScheduler = scheduler_class(self.name)(optimizer, **options)
        except (ValueError, TypeError, KeyError, EvolveError) as error:
            raise EvolveError(
                f"Learning rate schedule {self.name} refuses its options {options} with {type(optimizer).__name__}: "
                f"{error}"
            ) from error
        return WarmupLR(optimizer, scheduler, warmup) if warmup else scheduler

    def advance(
        self,
        scheduler: LRScheduler,
        interval: str,
        progress: float,
        ticks: int,
        epoch_steps: int = 1,
        monitored: float | None = None,
    ) -> None:
        """Moves a schedule on to where the run stands.

        Args:
            scheduler: From `build`.
            interval: "step" after an optimizer step, "epoch" at the end of an epoch.
            progress: Which part of the budget is spent.
            ticks: As for `build`; likewise `epoch_steps`.
            epoch_steps: Optimizer steps of an epoch.
            monitored: Value of the run's monitor, for one that looks at it.
        """
        warmup = 0
        if isinstance(scheduler, WarmupLR):
            warmup = scheduler.steps
            while scheduler.warming and scheduler.last_epoch < whole(progress * ticks):
                scheduler.step()
            if scheduler.warming:
                return
            scheduler = scheduler.schedule
        if interval != self.interval:
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            if monitored is not None:
                scheduler.step(monitored)
            return
        length = self._length(ticks - warmup, epoch_steps)
        spent = whole(progress * ticks) - warmup if warmup else progress * ticks
        while scheduler.last_epoch < whole(spent * length / (ticks - warmup)):
            scheduler.step()

    def held_until(self, scheduler: LRScheduler | None, ticks: int, epoch_steps: int = 1) -> float:
        """Returns the part of the budget up to which the learning rate is held; 1 where nothing is known of that.

        Args:
            scheduler: From `build`.
            ticks: As for `build`; likewise `epoch_steps`.
            epoch_steps: Optimizer steps of an epoch.
        """
        inner = scheduler.schedule if isinstance(scheduler, WarmupLR) else scheduler
        if not isinstance(inner, StableDecayLR):
            return 1.0
        warmup = self._warmup(ticks)
        held = min(1.0, inner.held / self._length(ticks - warmup, epoch_steps))
        return (warmup + held * (ticks - warmup)) / ticks

    def _warmup(self, ticks: int) -> int:
        if self.warmup is None or isinstance(self.warmup, int):
            return self.warmup or 0
        return max(1, round(self.warmup * ticks))

    def _length(self, ticks: int, epoch_steps: int) -> int:
        """How far the schedule itself moves in so many ticks."""
        return ticks if self.interval == "step" else math.ceil(ticks / epoch_steps)

    def _filled(self, length: int) -> dict[str, Any]:
        """The options, with the length where the schedule asks for one and has none."""
        options = dict(self.options)
        for key in _HORIZON:
            lasts = key in inspect.signature(scheduler_class(self.name)).parameters and key not in options
            if lasts and not (key == "total_steps" and "epochs" in options):
                options[key] = length
        return options

    def _check_rates(self, optimizer: Optimizer) -> None:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        option = _ABSOLUTE.get(self.name)
        if option and len(set(rates)) > 1 and not isinstance(self.options.get(option), list):
            raise EvolveError(
                f"{self.name} sets one learning rate for all parameter groups, and those of the optimizer differ: "
                f"{', '.join(f'{rate:g}' for rate in rates)}. Give lr_schedule.options.{option} a list with one for "
                "each, or take a schedule that scales the groups' own, such as wsd or CosineAnnealingLR, with a warmup."
            )

    def _tried(self, options: Mapping[str, Any]) -> None:
        """Makes the schedule over an optimizer of its own, and moves it by a step."""
        cls: Any = scheduler_class(self.name)
        each = [len(value) for key, value in options.items() if key in _BY_GROUP and isinstance(value, list)]
        groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(max(each, default=1))]
        optimizer = SGD(groups, lr=1.0, momentum=0.9)
        filled = type(self).model_construct(name=self.name, options=dict(options))._filled(_TRIED_STEPS)
        scheduler = cls(optimizer, **filled)
        optimizer.step()
        scheduler.step(*[1.0] if isinstance(scheduler, ReduceLROnPlateau) else [])


def check_mode(scheduler: LRScheduler, monitor: Monitor) -> None:
    """Refuses a schedule that takes the run for better as it becomes worse.

    Raises:
        EvolveError: With what it says and what the monitor says.
    """
    inner = scheduler.schedule if isinstance(scheduler, WarmupLR) else scheduler
    if isinstance(inner, ReduceLROnPlateau) and inner.mode != monitor.mode:
        raise EvolveError(
            f"ReduceLROnPlateau looks at the run's monitor, {monitor.metric}, of which mode: {monitor.mode} is better, "
            f"and is set to mode: {inner.mode}. Leave its mode out (lr_schedule.options), pass "
            f"mode='{monitor.mode}' to one that you make in Python, or look at another metric (training.monitor)."
        )


def _range_faults(options: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """Says which numbers are out of range: none of a schedule's is below 0, and what counts steps is 1 at least."""
    faults: list[tuple[KeyPath, str]] = []
    for key, value in options.items():
        least = 1 if key in _COUNTS else 0
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
        if any(number < least for number in numbers):
            faults.append(((key,), f"'{key}' has to be at least {least}; found {value}."))
    return faults
