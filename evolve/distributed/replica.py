"""A model in training on each rank: DistributedDataParallel around it, anew after each mutation."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from evolve.distributed.world import World

Forward = Callable[..., Any]

# How a forward pass is told to leave buffers alone: newer versions of torch have another name for it.
_NEW = "forward_sync_buffers"
_KEEP_BUFFERS: dict[str, Any] = {
    _NEW if _NEW in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


def wrap(forward: Forward, world: World) -> Forward:
    """Returns what is called in training: the model in DistributedDataParallel where several ranks train it.

    Weights have to be equal on all ranks already. A model may have parameters that a step does not use. Buffers are
    handed over by `World.hand_over` after each step, so that they are equal between steps, too, as DDP's own way does
    not promise.
    """
    if not world.together or not isinstance(forward, nn.Module) or isinstance(forward, DistributedDataParallel):
        return forward
    if not any(parameter.requires_grad for parameter in forward.parameters()):
        return forward
    with world.watched("wrapping the model"):
        return DistributedDataParallel(forward, find_unused_parameters=True, **_KEEP_BUFFERS)


def unwrap(forward: Forward) -> Forward:
    """Returns the model in DistributedDataParallel, which must not see it change: to be called before a mutation."""
    return forward.module if isinstance(forward, DistributedDataParallel) else forward


def let_go() -> None:
    """Ends what is left of a wrapper: it holds each parameter's old shape until it is collected."""
    gc.collect()


def averaging(forward: Forward, now: bool) -> AbstractContextManager[Any]:
    """Returns the context of a forward and backward pass: gradients are averaged over the ranks in it, or later."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) and not now else nullcontext()
