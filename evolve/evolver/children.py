"""Children: mutated copies of a model in training, trained a little, one of which may become the model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from evolve.errors import NonFiniteLossError
from evolve.evolver.loop import Loop, Stretch
from evolve.mutation import MutationResult
from evolve.policies import Candidate
from evolve.runtime.generators import preserved_rng
from evolve.runtime.memory import free_memory, out_of_memory
from evolve.surgery.optimizer_names import load_optimizer_by_name, optimizer_by_name

logger = logging.getLogger(__name__)

Mutate = Callable[[Loop, Candidate, int], MutationResult]
_Made = TypeVar("_Made")

_STEPS_OF_A_GLANCE = 8  # of a race, for each held-out batch that is looked at after it


@dataclass(frozen=True)
class Child:
    """A copy that was trained.

    Attributes:
        loop: Its model and optimizers.
        seed: That of its mutation, so that the same one can be made again.
        steps: Optimizer steps that it was trained for.
        score: The monitored metric on the held-out data; of a child that raced, the loss on a part of them.
        stretch: Of a child that raced: what the race was like. Where it becomes the model, the run goes on behind it.
    """

    loop: Loop
    seed: int
    steps: int
    score: float
    stretch: Stretch | None = None


class ChildTrainer:
    """Makes children of a running model and trains them.

    Args:
        loop: The training; every child sees the batches that are next, in the same order.
        mutate: Makes a candidate's mutation in a copy of the loop, by a seed, and what always follows it.
        seed: Of the mutations.
        stopping: Says whether the run is to stop: then no child is brought up any further.
    """

    def __init__(self, loop: Loop, mutate: Mutate, seed: int, stopping: Callable[[], bool]) -> None:
        self.loop = loop
        self._mutate = mutate
        self._seed = seed
        self._stopping = stopping

    def raised(self, candidate: Candidate | None, steps: int) -> Child | None:
        """Returns a child after `steps` optimizer steps; None if its mutation is refused, or it was given up.

        A child is given up where memory runs out, its loss is no longer finite, a budget of FLOPs or seconds is spent,
        or the run is to stop.

        The learning rate falls to zero, so that children are compared where each has settled (NASH, Elsken et al.
        2017). Random states are left as they were. FLOPs and seconds of the training are added to what the run has
        spent.

        Args:
            candidate: The mutation; None for a copy that is not mutated.
            steps: Optimizer steps.
        """
        return self._surviving(candidate, lambda: self._raise(candidate, steps))

    def raced(self, candidate: Candidate, steps: int, most: float) -> tuple[Child, Child] | None:
        """Trains a child and a copy that is not mutated on the same batches; None if either came to nothing.

        As `raised`, but at the present learning rate, so that the losses are those of the run going on.

        Args:
            candidate: The child's mutation.
            steps: Optimizer steps of each.
            most: Part of the budget that the child's may cost; both make fewer where it would be more.
        """
        made = self._surviving(candidate, lambda: self._made(candidate))
        child = None if made is None else self._surviving(candidate, lambda: self._race(made, steps, most))
        if child is None:
            return None
        own = self._surviving(None, lambda: self._race(self._made(None), child.steps))
        return None if own is None else (own, child)

    def _surviving(self, candidate: Candidate | None, act: Callable[[], _Made | None]) -> _Made | None:
        """Returns what `act` does; None where memory or a finite value give out."""
        with preserved_rng(self._seed):
            try:
                return act()
            except (NonFiniteLossError, RuntimeError, MemoryError) as error:
                if not isinstance(error, NonFiniteLossError) and not out_of_memory(error):
                    raise
                logger.warning("A child (%s) was given up: %s", candidate or "not mutated", error)
        free_memory()
        return None

    def _made(self, candidate: Candidate | None) -> Loop | None:
        """Returns a copy with a candidate's mutation; None where it is refused."""
        loop = self._copy()
        if loop is None or candidate is None:
            return loop
        answer = self._mutate(loop, candidate, self._seed)
        if not answer:
            return None
        loop.mutated([answer])
        return loop

    def _race(self, loop: Loop | None, steps: int, most: float = math.inf) -> Child | None:
        if loop is None:
            return None
        loop.spend(self.loop)  # what others have spent since it was copied
        try:
            stretch = loop.race(steps, self._stopping, most)
            made = 0 if stretch is None else len(stretch.losses)
            score = loop.glance(made // _STEPS_OF_A_GLANCE + 1)
        finally:
            self.loop.spend(loop)
        return None if stretch is None else Child(loop, self._seed, made, score, stretch)

    def _raise(self, candidate: Candidate | None, steps: int) -> Child | None:
        loop = self._made(candidate)
        if loop is None:
            return None
        try:
            trained = loop.train(steps, self._stopping)
        finally:
            self.loop.spend(loop)
        if not trained:
            return None
        score = loop.held_out()
        if not math.isfinite(score):
            raise NonFiniteLossError(f"its {loop.monitor.metric} is {score}.")
        return Child(loop, self._seed, steps, score)

    def _copy(self) -> Loop | None:
        try:
            return self.loop.copied()
        except Exception as error:  # whatever a user's module holds
            if out_of_memory(error):
                raise
            logger.warning("This model has no children, as it cannot be copied: %s: %s", type(error).__name__, error)
            return None

    def adopt(self, child: Child) -> None:
        """Gives the run's model, which has been mutated as the child was, the child's weights and optimizer state.

        The model, its parameters and the optimizers stay the objects they are; learning rates stay the run's. Where the
        child has raced, the run goes on behind the batches of the race.
        """
        if child.stretch is not None:
            self.loop.advance(child.steps)
        model, learned = self.loop.model, child.loop.model
        _take_forms(model, learned)
        model.load_state_dict(learned.state_dict())
        with torch.no_grad():
            for name, buffer in learned.named_buffers():  # those too that are in no `state_dict`
                model.get_buffer(name).copy_(buffer)
        groups = [group for optimizer in self.loop.optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        saved = optimizer_by_name(learned, child.loop.optimizers)
        load_optimizer_by_name(model, self.loop.optimizers, copy.deepcopy(saved))
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def _take_forms(model: nn.Module, learned: nn.Module) -> None:
    """Gives a model the buffers that a forward has made, or given another shape, in a copy of it."""
    for name, module in learned.named_modules():
        own = model.get_submodule(name)
        for key, buffer in module._buffers.items():
            old = own._buffers.get(key)
            if buffer is not None and (old is None or old.shape != buffer.shape):
                own._buffers[key] = buffer.clone()
        own._non_persistent_buffers_set |= module._non_persistent_buffers_set
