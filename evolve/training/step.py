"""One optimizer step, and evaluating, as plain functions over a training state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from evolve.budget import FORWARD_AND_BACKWARD
from evolve.data.trees import Batch
from evolve.runtime.generators import preserved_rng
from evolve.tasks import MetricMeter, loss_and_outputs
from evolve.tasks.metrics import LOSS
from evolve.training.passes import Passed, autocast, pass_alone, pass_in_parts, place
from evolve.training.state import TrainState


class StepResult(NamedTuple):
    """What one optimizer step saw.

    Attributes:
        loss: Mean of the batches' losses, by their weights.
        samples: How many there were.
        passes: One for each batch.
    """

    loss: float
    samples: int
    passes: list[Passed]


def train_step(
    state: TrainState, batches: Sequence[Batch], before_step: Callable[[], None] | None = None
) -> StepResult:
    """Makes one optimizer step over one or, with accumulation, several batches.

    Args:
        state: What training moves.
        batches: What the step is made over, the same on all devices.
        before_step: Called when the gradients are complete, on their own scale and clipped.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; no weight was changed by it.
    """
    together = state.world.together
    if together:
        state.wrap()
    if len(batches) == 1 and not together:
        passes = [pass_alone(state, batches[0])]
        loss, samples = passes[0].loss, state.task.count(batches[0])
    else:
        passes = list(pass_in_parts(state, batches))
        loss = _mean(passes)
        samples = sum(state.task.count(batch) for batch in batches)
    if together:
        state.world.hand_over(list(state.model.buffers()))  # what each forward pass has made of its part
    _optimizer_step(state, before_step)
    state.step += 1
    state.batch += len(batches)
    state.flops += FORWARD_AND_BACKWARD * state.flops_per_sample * samples
    if state.scheduler is not None:
        advance_schedule(state, "step")
    return StepResult(loss, samples, passes)


def _mean(passes: Sequence[Passed]) -> float:
    """Mean of the losses by the weights of their batches; the plain one where all weigh nothing."""
    weights = [one.weight or 0.0 for one in passes]
    whole = sum(weights)
    return sum(
        one.loss * (weight / whole if whole else 1 / len(passes)) for one, weight in zip(passes, weights, strict=True)
    )


def _optimizer_step(state: TrainState, before_step: Callable[[], None] | None) -> None:
    if state.scaler and (state.config.grad_clip is not None or before_step):
        state.scaler.unscale_(state.optimizer)
    if state.config.grad_clip is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, state.config.grad_clip)
    if before_step:
        before_step()
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    _clear_gradients(state.optimizer)
    if state.ema:
        state.ema.update(state.model, state.lr)


def _clear_gradients(optimizer: Optimizer) -> None:
    """What `Optimizer.zero_grad` does, without its record for a profiler, which shows in a step of milliseconds."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def advance_schedule(state: TrainState, interval: str, found: Mapping[str, float] | None = None) -> None:
    """Moves the learning rate schedule to where the run stands.

    Args:
        state: What training moves.
        interval: "step" after an optimizer step, "epoch" at the end of an epoch.
        found: What an evaluation found, for a schedule that looks at the run's monitor.
    """
    scheduler = state.scheduler
    if scheduler is None:
        return
    monitored = found.get(state.monitor.metric.removeprefix("val_")) if found else None
    if state.lr_schedule is not None:
        state.lr_schedule.advance(scheduler, interval, state.progress, state.ticks, state.epoch_steps, monitored)
    elif isinstance(scheduler, ReduceLROnPlateau):
        if monitored is not None:
            scheduler.step(monitored)
    elif interval == "step":
        scheduler.step()


def follow_schedule(state: TrainState, steps: int, epochs: int) -> None:
    """Moves the learning rate schedule on by steps that were made elsewhere, as by a copy of the model.

    Args:
        state: Where the run stands after them.
        steps: How many.
        epochs: How many of them ended an epoch.
    """
    for _ in range(steps):
        advance_schedule(state, "step")
    if epochs:
        advance_schedule(state, "epoch")


def evaluate(state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns the mean "loss" and the metrics of the task, with averaged weights where there are any.

    What a model or its data draw (noise, anchors, crops) is drawn from the same seed each time, and the random states
    are left as they were: so two evaluations can be compared, and training does not depend on how many there are.
    """
    meter = EvaluationMeter(state)
    with preserved_rng(state.config.seed):
        for found in evaluated(state, batches):
            meter.add(found)
    return dict(state.world.tell(meter.compute()))  # every device evaluates, and the first one's numbers count


class Evaluated(NamedTuple):
    """A batch that was evaluated.

    Attributes:
        loss: A scalar, on the device.
        outputs: What metrics look at.
        batch: On the device.
        weight: What the loss is a mean over, see `Task.weight`.
    """

    loss: Tensor
    outputs: Any
    batch: Batch
    weight: float


class EvaluationMeter:
    """Sums over the batches of an evaluation.

    Args:
        state: What is evaluated.
        metric: The only one that is measured, such as "loss" or "f1"; None for all.
    """

    def __init__(self, state: TrainState, metric: str | None = None) -> None:
        wanted = [one for one in state.metrics if metric is None or one.label == metric or one.several]
        self._meter = MetricMeter(state.task, [] if metric == LOSS else wanted)
        self._loss = torch.zeros((), device=state.device, dtype=torch.float32)
        self._weight = 0.0

    def add(self, found: Evaluated) -> None:
        """Takes in a batch."""
        if found.weight:  # a mean over nothing is NaN
            self._loss += found.loss.float() * found.weight
            self._weight += found.weight
        self._meter.update(found.outputs, found.batch)

    def compute(self) -> dict[str, float]:
        """Returns loss and metrics; the loss is NaN where it is a mean over nothing."""
        return {LOSS: self._loss.item() / self._weight if self._weight else math.nan, **self._meter.compute()}


@torch.no_grad()
def evaluated(state: TrainState, batches: Iterable[Batch]) -> Iterator[Evaluated]:
    """Yields what became of each batch, in eval mode, with averaged weights where there are any."""
    averaged = state.ema.applied_to(state.model) if state.ema else nullcontext()
    with eval_mode(state.model), averaged:
        for batch in batches:
            weight = state.task.weight(batch)  # where the data lie: on the device it would be waited for
            batch = place(state, batch)
            with autocast(state):
                loss, outputs = loss_and_outputs(state.task.evaluate(state.evaluated, batch))
            yield Evaluated(loss, outputs, batch, weight)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode, and each module back in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
