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
from evolve.errors import NonFiniteLossError
from evolve.training.state import TrainState

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step saw.

    Attributes:
        loss: Mean of the batches' losses.
        samples: How many there were.
        hits: For each batch, which answers were right; empty where targets are not classes.
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
    for inputs, targets in batches:
        inputs, targets = place(state, inputs), to_device(state, targets)
        with autocast(state):
            outputs = state.forward(inputs)
            loss = state.loss(outputs, targets)
        value = loss.item()
        if not math.isfinite(value):
            state.optimizer.zero_grad()
            raise NonFiniteLossError(
                f"The loss became {value} at step {state.step} (epoch {state.epoch}). The step was not trained on. "
                "Lower the learning rate, clip gradients (training.grad_clip) or use precision: fp32."
            )
        share = loss if len(batches) == 1 else loss / len(batches)
        (state.scaler.scale(share) if state.scaler else share).backward()
        total, samples = total + value / len(batches), samples + len(inputs)
        answers.append(right_answers(outputs, targets))
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


@torch.no_grad()
def evaluate(state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns mean "loss" and, where targets are classes, "accuracy", with averaged weights where there are any."""
    loss_sum, samples = torch.zeros((), device=state.device, dtype=torch.float32), 0
    answers: list[Tensor | None] = []
    averaged = state.ema.applied_to(state.model) if state.ema else nullcontext()
    with eval_mode(state.model), averaged:
        for inputs, targets in batches:
            inputs, targets = place(state, inputs), targets.to(state.device, non_blocking=True)
            with autocast(state):
                outputs = state.forward(inputs)
                loss = state.loss(outputs, targets)
            loss_sum += loss.float() * len(inputs)
            samples += len(inputs)
            answers.append(right_answers(outputs, targets))
    metrics = {"loss": loss_sum.item() / max(samples, 1)}
    if hits := [batch for batch in answers if batch is not None]:
        metrics["accuracy"] = int(torch.cat(hits).sum()) / samples
    return metrics


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


def place(state: TrainState, inputs: Tensor) -> Tensor:
    """Brings inputs to where the model is, in its memory format."""
    if state.config.channels_last and inputs.dim() == 4:
        return inputs.to(state.device, non_blocking=True, memory_format=torch.channels_last)
    return inputs.to(state.device, non_blocking=True)


def to_device(state: TrainState, targets: Tensor) -> Tensor:
    """Brings targets to where the model is."""
    return targets.to(state.device, non_blocking=True)


def autocast(state: TrainState) -> AbstractContextManager[Any]:
    """Returns the context in which the configured precision holds."""
    if state.config.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if state.config.precision == "bf16" else torch.float16
    return torch.autocast(state.device.type, dtype)


def right_answers(outputs: Any, targets: Tensor) -> Tensor | None:
    """Returns which answers of a classification are right; None where the targets are not one class each.

    Not summed here: in a step of a few milliseconds every further operation shows, and it can be done once an epoch.
    """
    classes = isinstance(outputs, Tensor) and outputs.dim() == 2 and targets.dim() == 1
    if not classes or targets.is_floating_point():
        return None
    hits: Tensor = outputs.argmax(1) == targets
    return hits
