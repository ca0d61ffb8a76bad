"""Everything that training moves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from evolve.budget import FORWARD_AND_BACKWARD, Spent
from evolve.care import NewParameters
from evolve.care.ema import EMA
from evolve.config.options import Monitor
from evolve.distributed.replica import let_go, unwrap, wrap
from evolve.distributed.world import World
from evolve.runtime.device import resolve_device
from evolve.tasks import Metric, Task
from evolve.training.best_weights import BestWeights
from evolve.training.config import TrainingConfig
from evolve.training.finite import FiniteWatch
from evolve.training.lr_schedule import LrScheduleConfig, check_mode

_COUNTS = ("epoch", "step", "batch", "seconds", "flops", "flops_per_sample")


@dataclass
class TrainState:
    """Everything that training moves.

    Attributes:
        model: The network, in place.
        forward: What is called in its place in training: the model or its compiled form, in DDP on several devices.
        task: What a batch is, and its loss.
        metrics: What is measured beside the loss.
        monitor: The metric that decisions look at.
        finite: Knows which of the model's tensors may be NaN or infinite, as they were so from the beginning.
        best: Keeps the weights of the best epoch, where the model is to have them at the end.
        new_parameters: New parts of its parameters that are cared for.
        epoch: Epochs finished.
        step: Optimizer steps made.
        batch: Batches of the running epoch that are done.
        seconds: Wall time of the run so far, as far as `count_time` was called.
        flops: FLOPs of the training steps so far.
        flops_per_sample: FLOPs of one forward pass of one sample of the model as it stands.
        epoch_steps: Optimizer steps of an epoch.
        epoch_samples: Samples of an epoch.
        ticks: Length of the run as learning rate schedules count it, see `Budget.ticks`.
        lap: When `seconds` were last counted.
        took: Seconds of the last few optimizer steps of the model as it is.
        world: The processes that train it together.
    """

    model: nn.Module
    optimizer: Optimizer
    task: Task
    config: TrainingConfig
    device: torch.device
    forward: Callable[..., Any]
    finite: FiniteWatch
    metrics: Sequence[Metric] = ()
    monitor: Monitor = field(default_factory=Monitor)
    scheduler: LRScheduler | None = None
    lr_schedule: LrScheduleConfig | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: EMA | None = None
    best: BestWeights | None = None
    new_parameters: NewParameters | None = None
    epoch: int = 0
    step: int = 0
    batch: int = 0
    seconds: float = 0.0
    flops: int = 0
    flops_per_sample: int = 0
    epoch_steps: int = 1
    epoch_samples: int = 0
    ticks: int = 1
    lap: float = field(init=False)
    took: deque[float] = field(default_factory=partial(deque, maxlen=8))
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.lap = time.perf_counter()

    def count_time(self) -> None:
        """Adds the wall time since it was last counted; on several devices that of rank 0."""
        now = time.perf_counter()
        self.seconds, self.lap = self.seconds + now - self.lap, now
        if self.world.together:
            self.seconds = self.world.tell(self.seconds)

    def count_step(self) -> None:
        """Adds the wall time of an optimizer step."""
        before = self.lap
        self.count_time()
        self.took.append(self.lap - before)

    @property
    def evaluated(self) -> Callable[..., Any]:
        """What is called in evaluation: the model or its compiled form."""
        return unwrap(self.forward)

    def wrap(self) -> None:
        """Gets the model ready for training steps on several devices."""
        self.forward = wrap(self.forward, self.world)

    def unwrap(self) -> None:
        """Gets the model ready for being changed; the next training step wraps it again."""
        plain = unwrap(self.forward)
        if plain is not self.forward:
            self.forward = plain
            let_go()

    @cached_property
    def counts_answers(self) -> bool:
        """Whether training counts right answers."""
        return any(metric.counted(self.task) for metric in self.metrics)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def counts(self) -> dict[str, float]:
        """Returns where the run stands and what it has spent, as plain numbers."""
        return {name: getattr(self, name) for name in _COUNTS}

    def take_counts(self, counts: Mapping[str, float]) -> None:
        """Takes up what `counts` returned."""
        for name in _COUNTS:
            setattr(self, name, counts[name])

    @property
    def has_best_weights(self) -> bool:
        """Whether the run is over and the model has the weights of its best epoch, not those of the last step."""
        return self.best is not None and self.best.in_place

    @property
    def progress(self) -> float:
        """Which part of the budget is spent, from 0 to 1."""
        budget = self.config.budget
        if budget.unit == "epochs":  # the most usual one takes the short way: each step asks
            return min(1.0, self.step / self.epoch_steps / budget.amount)
        return budget.progress(self.spent)

    @property
    def spent(self) -> Spent:
        """What the run has used up."""
        return Spent(self.step / self.epoch_steps, self.step, self.seconds, self.flops)

    def affordable(self, epochs: float) -> int | None:
        """Returns the most FLOPs of a forward pass of a model that the budget left trains for so many epochs.

        It is never less than the model has: one that does not grow needs no repayment. None where size does not matter,
        as the budget is of epochs or steps, and enough are left; and where it is not known, as no step has been made or
        FLOPs cannot be counted. Seconds are taken to go with FLOPs.
        """
        epoch_flops = FORWARD_AND_BACKWARD * self.flops_per_sample * self.epoch_samples
        budget = self.config.budget
        if not self.step or not epoch_flops:
            return None
        left = budget.epochs_left(self.spent, epoch_flops)
        if budget.unit in ("epochs", "steps"):
            return None if left >= epochs else self.flops_per_sample
        return max(self.flops_per_sample, int(self.flops_per_sample * left / epochs))


@dataclass
class Counts:
    """Where a run stands. It goes back with the weights; what was spent stays spent."""

    state: TrainState

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        return dict(self.state.counts())

    def load_state_dict(self, counts: Mapping[str, Any]) -> None:
        """Takes up the counts, but for time and FLOPs."""
        self.state.take_counts({**counts, "seconds": self.state.seconds, "flops": self.state.flops})
        self.state.took.clear()


def place_model(model: nn.Module, config: TrainingConfig) -> torch.device:
    """Moves a model, in place, to the device and memory format that the configuration names."""
    device = resolve_device(config.device)
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return device


def create_state(
    model: nn.Module,
    optimizer: Optimizer,
    config: TrainingConfig,
    task: Task,
    *,
    metrics: Sequence[Metric] = (),
    monitor: Monitor | None = None,
    lr_schedule: LrScheduleConfig | LRScheduler | None = None,
    epoch_steps: int = 1,
    epoch_samples: int = 0,
    flops_per_sample: int = 0,
    world: World | None = None,
) -> TrainState:
    """Returns the state of a run that is about to begin.

    Args:
        model: Already placed by `place_model`.
        optimizer: Over the model's parameters.
        config: How to train.
        task: What a batch is, and its loss.
        metrics: What is measured beside the loss.
        monitor: The metric that decisions look at; `Monitor("val_loss", "min")` if None.
        lr_schedule: Its configuration, or a schedule that moves once a step; one that looks at the monitor
            (`ReduceLROnPlateau`) moves with each evaluation.
        epoch_steps: Optimizer steps of an epoch.
        epoch_samples: Samples of an epoch; needed where FLOPs are the budget.
        flops_per_sample: FLOPs of one forward pass of one sample; needed where FLOPs are the budget.
        world: The processes that train it together; None for this one alone.

    Raises:
        EvolveError: If FLOPs are the budget and the model has none, or the schedule refuses its options, or takes the
            other way of the monitor for the better one.
    """
    step_flops = FORWARD_AND_BACKWARD * flops_per_sample * epoch_samples / epoch_steps
    ticks = config.budget.ticks(epoch_steps, step_flops)
    monitor = monitor or Monitor()
    scheduler = lr_schedule if isinstance(lr_schedule, LRScheduler) else None
    if isinstance(lr_schedule, LrScheduleConfig):
        scheduler = lr_schedule.build(optimizer, ticks, epoch_steps, monitor.mode)
    if scheduler is not None:
        check_mode(scheduler, monitor)
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    ema = EMA(model, None if config.ema == "auto" else config.ema) if config.ema else None
    return TrainState(
        model=model,
        optimizer=optimizer,
        task=task,
        metrics=metrics,
        monitor=monitor,
        config=config,
        device=device,
        forward=torch.compile(model) if config.compile else model,
        finite=FiniteWatch(model),
        scheduler=scheduler,
        lr_schedule=lr_schedule if isinstance(lr_schedule, LrScheduleConfig) else None,
        scaler=torch.amp.GradScaler() if config.precision == "fp16" and device.type == "cuda" else None,
        ema=ema,
        best=BestWeights(model, ema, monitor) if config.keep_best else None,
        flops_per_sample=flops_per_sample,
        epoch_steps=epoch_steps,
        epoch_samples=epoch_samples,
        ticks=ticks,
        world=world or World(),
    )
