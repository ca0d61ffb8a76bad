"""One optimizer step, and evaluating, as plain functions over a training state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evolve.budget import FORWARD_AND_BACKWARD
from evolve.data.trees import Batch, map_tensors
from evolve.errors import NonFiniteLossError
from evolve.tasks import MetricMeter, loss_and_outputs
from evolve.training.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step saw.

    Attributes:
        loss: Mean of the batches' losses.
        samples: How many there were.
        hits: For each batch, which answers were right; empty where the task has no such answers.
    """

    loss: float
    samples: int
    hits: list[Tensor]


def train_step(
    state: TrainState, batches: Sequence[Batch], before_step: Callable[[], None] | None = None
) -> StepResult:
    """Makes one optimizer step over one or, with accumulation, several batches.

    Args:
        state: What training moves.
        batches: What the step is made over.
        before_step: Called when the gradients are complete, on their own scale and clipped.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; no weight was changed by it.
    """
    total, samples = 0.0, 0
    answers: list[Tensor | None] = []
    for batch in batches:
        batch = place(state, batch)
        with autocast(state):
            loss, outputs = loss_and_outputs(state.task.loss(state.forward, batch))
        value = loss.item()
        if not math.isfinite(value):
            state.optimizer.zero_grad()
            raise NonFiniteLossError(
                f"The loss became {value} at step {state.step} (epoch {state.epoch}). The step was not trained on. "
                "Lower the learning rate, clip gradients (training.grad_clip) or use precision: fp32."
            )
        share = loss if len(batches) == 1 else loss / len(batches)
        (state.scaler.scale(share) if state.scaler else share).backward()
        total, samples = total + value / len(batches), samples + state.task.count(batch)
        answers.append(state.task.right_answers(outputs, batch) if state.counts_answers else None)
    _optimizer_step(state, before_step)
    state.step += 1
    state.batch += len(batches)
    state.flops += FORWARD_AND_BACKWARD * state.flops_per_sample * samples
    advance_schedule(state, "step")
    return StepResult(total, samples, [hits for hits in answers if hits is not None])


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


def advance_schedule(state: TrainState, interval: str, val_loss: float | None = None) -> None:
    """Moves the learning rate schedule to where the run stands, at an interval ("step" or "epoch")."""
    if state.scheduler is None:
        return
    if state.lr_schedule is None:
        if interval == "step":
            state.scheduler.step()
    else:
        state.lr_schedule.advance(state.scheduler, interval, state.progress, state.ticks, state.epoch_steps, val_loss)


def evaluate(state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns the mean "loss" and the metrics of the task, with averaged weights where there are any."""
    meter = EvaluationMeter(state)
    for loss, outputs, batch in evaluated(state, batches):
        meter.add(loss, outputs, batch)
    return meter.compute()


class EvaluationMeter:
    """Sums over the batches of an evaluation."""

    def __init__(self, state: TrainState) -> None:
        self._task = state.task
        self._meter = MetricMeter(state.task, state.metrics)
        self._loss = torch.zeros((), device=state.device, dtype=torch.float32)
        self._samples = 0

    def add(self, loss: Tensor, outputs: Any, batch: Batch) -> None:
        """Takes in a batch."""
        samples = self._task.count(batch)
        self._loss += loss.float() * samples
        self._samples += samples
        self._meter.update(outputs, batch)

    def compute(self) -> dict[str, float]:
        """Returns loss and metrics."""
        return {"loss": self._loss.item() / max(self._samples, 1), **self._meter.compute()}


@torch.no_grad()
def evaluated(state: TrainState, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Any, Batch]]:
    """Yields loss, outputs and the batch of each, in eval mode, with averaged weights where there are any."""
    averaged = state.ema.applied_to(state.model) if state.ema else nullcontext()
    with eval_mode(state.model), averaged:
        for batch in batches:
            batch = place(state, batch)
            with autocast(state):
                loss, outputs = loss_and_outputs(state.task.evaluate(state.forward, batch))
            yield loss, outputs, batch


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
        return tensor.to(state.device, non_blocking=True)

    return map_tensors(batch, move)


def autocast(state: TrainState) -> AbstractContextManager[Any]:
    """Returns the context in which the configured precision holds."""
    if state.config.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if state.config.precision == "bf16" else torch.float16
    return torch.autocast(state.device.type, dtype)
