"""One optimizer step, and evaluating, as plain functions over a training state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from evolve.budget import FORWARD_AND_BACKWARD
from evolve.data.order import mix
from evolve.data.trees import Batch, map_tensors
from evolve.distributed.parts import part_of
from evolve.distributed.replica import averaging
from evolve.errors import NonFiniteLossError
from evolve.runtime.generators import preserved_rng
from evolve.tasks import MetricMeter, loss_and_outputs
from evolve.tasks.metrics import LOSS
from evolve.training.state import TrainState


class StepResult(NamedTuple):
    """What one optimizer step saw.

    Attributes:
        loss: Mean of the batches' losses, by their weights.
        samples: How many there were.
        weight: Of all batches, see `Task.weight`.
        hits: For each batch, which answers were right; empty where the task has no such answers.
    """

    loss: float
    samples: int
    weight: float
    hits: list[Tensor]


def train_step(
    state: TrainState, batches: Sequence[Batch], before_step: Callable[[], None] | None = None
) -> StepResult:
    """Makes one optimizer step over one or, with accumulation, several batches.

    On several devices each takes its part of every batch, and all come to the same result.

    Args:
        state: What training moves.
        batches: What the step is made over, the same on all devices.
        before_step: Called when the gradients are complete, on their own scale and clipped.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; no weight was changed by it.
    """
    if state.world.together:
        state.wrap()
    total, samples = 0.0, 0
    weights = [state.task.weight(batch) for batch in batches]
    whole = sum(weights)
    answers: list[Tensor | None] = []
    for index, batch in enumerate(batches):
        share = weights[index] / whole if whole else 1 / len(batches)
        samples += state.task.count(batch)
        batch, part, counts = _part(state, batch, weights[index])
        batch = place(state, batch)
        with _passing(state, index, last=index == len(batches) - 1):
            with autocast(state):
                loss, outputs = loss_and_outputs(state.task.loss(state.forward, batch))
            hits = state.task.right_answers(outputs, batch) if state.counts_answers else None
            hits = hits if counts or hits is None else hits[:0]
            value, hits = _together(state, loss.item() if share else 0.0, part, hits)
            _check_finite(state, value)
            loss = loss if share * part == 1 else loss * (share * part)
            (state.scaler.scale(loss) if state.scaler else loss).backward()
        total += value * share
        answers.append(hits)
    if state.world.together:
        state.world.hand_over(list(state.model.buffers()))  # what each forward pass has made of its part
    _optimizer_step(state, before_step)
    state.step += 1
    state.batch += len(batches)
    state.flops += FORWARD_AND_BACKWARD * state.flops_per_sample * samples
    advance_schedule(state, "step")
    return StepResult(total, samples, whole, [hits for hits in answers if hits is not None])


def _part(state: TrainState, batch: Batch, whole: float) -> tuple[Batch, float, bool]:
    """Returns this device's part of a batch, what its loss weighs in the average of gradients, and whether it counts.

    DDP takes the plain mean of them: so a part weighs as many times the number of devices as it is of the whole weight.
    """
    world, task = state.world, state.task
    if not world.together:
        return batch, 1.0, True
    first, end, counts = part_of(task.count(batch), world.rank, world.size)
    part = task.part(batch, first, end)
    return part, task.weight(part) * world.size / whole if counts and whole else float(counts), counts


def _passing(state: TrainState, index: int, last: bool) -> AbstractContextManager[None]:
    """Returns the context of a forward and backward pass."""
    return _passing_together(state, index, last) if state.world.together else nullcontext()


@contextmanager
def _passing_together(state: TrainState, index: int, last: bool) -> Iterator[None]:
    """A pass on several devices: gradients are averaged in the last of a step.

    What is drawn in it differs from device to device, and the generators are as before it, the same on all.
    """
    world = state.world
    drawn = mix(state.config.seed, state.step, index, world.rank)
    with preserved_rng(drawn), averaging(state.forward, now=last), world.watched("averaging gradients"):
        yield


def _together(state: TrainState, value: float, weight: float, hits: Tensor | None) -> tuple[float, Tensor | None]:
    """Returns loss and right answers of the whole batch."""
    world = state.world
    if not world.together:
        return value, hits
    own = [0.0, 0.0] if hits is None else [float(hits.sum()), float(len(hits))]
    loss, right, answers = world.sum([value * weight / world.size if weight else 0.0, *own])
    return loss, None if hits is None else torch.arange(int(answers)) < int(right)


def _check_finite(state: TrainState, value: float) -> None:
    if not math.isfinite(value):
        state.optimizer.zero_grad()
        raise NonFiniteLossError(
            f"The loss became {value} at step {state.step} (epoch {state.epoch}). The step was not trained on. "
            "Lower the learning rate, clip gradients (training.grad_clip) or use precision: fp32."
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
    state.optimizer.zero_grad()
    if state.ema:
        state.ema.update(state.model)


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


def place(state: TrainState, batch: Batch) -> Batch:
    """Brings a batch to where the model is, images in its memory format."""
    channels_last = state.config.channels_last

    def move(tensor: Tensor) -> Tensor:
        if channels_last and tensor.dim() == 4:
            return tensor.to(state.device, non_blocking=True, memory_format=torch.channels_last)
        return tensor if tensor.device == state.device else tensor.to(state.device, non_blocking=True)

    return map_tensors(batch, move)


def autocast(state: TrainState) -> AbstractContextManager[Any]:
    """Returns the context in which the configured precision holds."""
    if state.config.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if state.config.precision == "bf16" else torch.float16
    return torch.autocast(state.device.type, dtype)
