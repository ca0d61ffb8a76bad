"""A forward and backward pass of a training step: on one device, or on several that share the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evolve.data.order import mix
from evolve.data.trees import Batch, map_tensors
from evolve.distributed.parts import part_of
from evolve.distributed.replica import averaging
from evolve.errors import NonFiniteLossError
from evolve.runtime.generators import preserved_rng
from evolve.tasks import loss_and_outputs
from evolve.training.state import TrainState

_PLAIN = nullcontext()


class Passed(NamedTuple):
    """What a pass saw of its batch.

    Attributes:
        loss: Mean loss of the batch.
        weight: See `Task.weight`; None where it is yet to be counted.
        hits: Which answers were right; None where the task has no such answers, or they are yet to be counted.
        kept: What both are counted from later, see `Task.kept`.
    """

    loss: float
    weight: float | None
    hits: Tensor | None
    kept: tuple[Tensor, Tensor] | None = None


def pass_alone(state: TrainState, batch: Batch) -> Passed:
    """Adds the gradients of a batch that is the whole step.

    Raises:
        NonFiniteLossError: If the loss is NaN or infinite; no weight was changed by it.
    """
    task, placed = state.task, place(state, batch)
    with autocast(state):
        loss, outputs = loss_and_outputs(task.loss(state.forward, placed))
    value = loss.item()
    _check_finite(state, value)
    (state.scaler.scale(loss) if state.scaler else loss).backward()
    if kept := task.kept(outputs, placed):
        return Passed(value, None, None, kept)
    hits = task.right_answers(outputs, placed) if state.counts_answers else None
    return Passed(value, task.weight(batch), hits)  # where the data lie: on the device it would be waited for


def pass_in_parts(state: TrainState, batches: Sequence[Batch]) -> Iterator[Passed]:
    """Adds the gradients of several batches, by their weights, and of this device's part of each.

    On several devices each takes its part of every batch, and all come to the same result.

    Args:
        state: What training moves.
        batches: What the step is made over, the same on all devices.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; no weight was changed by it.
    """
    weights = [state.task.weight(batch) for batch in batches]
    whole = sum(weights)
    for index, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        share = weight / whole if whole else 1 / len(batches)
        batch, part, counts = _part(state, batch, weight)
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
        yield Passed(value, weight, hits)


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
    return _passing_together(state, index, last) if state.world.together else _PLAIN


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


def place(state: TrainState, batch: Batch) -> Batch:
    """Brings a batch to where the model is, images in its memory format."""
    device, channels_last = state.device, state.config.channels_last
    if type(batch) is tuple and len(batch) == 2 and not channels_last:  # a pair takes the short way: each step asks
        inputs, targets = batch
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.device == device == targets.device:
            return batch

    def move(tensor: Tensor) -> Tensor:
        if channels_last and tensor.dim() == 4:
            return tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
        return tensor if tensor.device == device else tensor.to(device, non_blocking=True)

    return map_tensors(batch, move)


def autocast(state: TrainState) -> AbstractContextManager[Any]:
    """Returns the context in which the configured precision holds."""
    if state.config.precision == "fp32":
        return _PLAIN
    dtype = torch.bfloat16 if state.config.precision == "bf16" else torch.float16
    return torch.autocast(state.device.type, dtype)
