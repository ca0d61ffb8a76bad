"""Children: mutated copies of a model in training, trained a little, one of which may become the model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evolve.data import Batches
from evolve.errors import NonFiniteLossError
from evolve.mutation.api import MutationResult
from evolve.policies import Candidate
from evolve.runtime.generators import preserved_rng
from evolve.runtime.memory import free_memory, out_of_memory
from evolve.surgery.optimizer_names import load_optimizer_by_name, optimizer_by_name
from evolve.training import TrainState, evaluate, train_step

logger = logging.getLogger(__name__)

Mutate = Callable[[nn.Module, Optimizer, Candidate, int], MutationResult]


@dataclass(frozen=True)
class Child:
    """A copy that was trained.

    Attributes:
        state: Its model and optimizer.
        seed: That of its mutation, so that the same one can be made again.
        steps: Optimizer steps that it was trained for.
        loss: On the held-out data.
    """

    state: TrainState
    seed: int
    steps: int
    loss: float


class ChildTrainer:
    """Makes children of a running model and trains them.

    Args:
        state: What training moves.
        train: Training data; every child sees the batches that are next, in the same order.
        val: Held-out data.
        mutate: Makes a candidate's mutation on a model with its optimizer, by a seed, and what always follows it.
        seed: Of the mutations.
        stopping: Says whether the run is to stop: then no child is brought up any further.
    """

    def __init__(
        self,
        state: TrainState,
        train: Batches,
        val: Batches,
        mutate: Mutate,
        seed: int,
        stopping: Callable[[], bool],
    ) -> None:
        self.state = state
        self._stopping = stopping
        self._train, self._val = train, val
        self._mutate = mutate
        self._seed = seed

    def raised(self, candidate: Candidate | None, steps: int) -> Child | None:
        """Returns a child after `steps` optimizer steps; None if its mutation is refused, or it was given up.

        That is where memory or a finite loss give out, a budget of FLOPs or seconds is spent, or the run is to stop.

        The learning rate falls from the present one to zero by half a cosine, so that children are compared where each
        has settled (NASH, Elsken et al. 2017). Random states are left as they were.

        The FLOPs and seconds of its training are added to what the run has spent.

        Args:
            candidate: The mutation; None for a copy that is not mutated.
            steps: Optimizer steps.
        """
        with preserved_rng(self._seed):
            try:
                return self._raise(candidate, steps)
            except (NonFiniteLossError, RuntimeError, MemoryError) as error:
                if not isinstance(error, NonFiniteLossError) and not out_of_memory(error):
                    raise
                logger.warning("A child (%s) was given up: %s", candidate or "not mutated", error)
        free_memory()
        return None

    def _raise(self, candidate: Candidate | None, steps: int) -> Child | None:
        copies = self._copies()
        if copies is None:
            return None
        model, optimizer, scaler = copies
        flops = self.state.flops_per_sample
        if candidate is not None:
            answer = self._mutate(model, optimizer, candidate, self._seed)
            if not answer:
                return None
            flops = answer.record.flops_after or flops
        state = replace(
            self.state,
            model=model,
            forward=model,
            optimizer=optimizer,
            scheduler=None,
            scaler=scaler,
            ema=None,
            new_parameters=None,
            flops_per_sample=flops,
        )
        try:
            taught = self._teach(state, steps)
        finally:
            self.state.flops, self.state.seconds, self.state.lap = state.flops, state.seconds, state.lap
        if not taught:
            return None
        loss = evaluate(state, self._val.epoch(0))["loss"]
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"its held-out loss is {loss}.")
        return Child(state, self._seed, steps, loss)

    def _copies(self) -> tuple[nn.Module, Optimizer, torch.amp.GradScaler | None] | None:
        state = self.state
        kept = (value for module in state.model.modules() for value in vars(module).values())
        # What a forward has left behind, as weight normalisation does, belongs to a graph, which cannot be copied.
        memo = {id(value): value.detach() for value in kept if isinstance(value, Tensor) and not value.is_leaf}
        try:
            return copy.deepcopy((state.model, state.optimizer, state.scaler), memo)
        except Exception as error:  # whatever a user's module holds
            if out_of_memory(error):
                raise
            logger.warning("This model has no children, as it cannot be copied: %s: %s", type(error).__name__, error)
            return None

    def _teach(self, state: TrainState, steps: int) -> bool:
        """Trains; says whether the child is done, and not the run: its budget is spent, or it is to stop."""
        rates = [float(group["lr"]) for group in state.optimizer.param_groups]
        coming = self._train.onward(self.state.epoch, self.state.batch)
        for step in range(steps):
            share = (1 + math.cos(math.pi * step / steps)) / 2
            for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            train_step(state, list(islice(coming, state.config.accumulate)))
            state.count_time()
            spent = state.config.budget.unit in ("flops", "seconds") and state.progress >= 1
            if spent or self._stopping():
                return False
        return True

    def adopt(self, child: Child) -> None:
        """Gives the run's model, which has been mutated as the child was, the child's weights and optimizer state.

        The model, its parameters and the optimizer stay the objects they are; learning rates stay the run's.
        """
        state, learned = self.state, child.state
        state.model.load_state_dict(learned.model.state_dict())
        with torch.no_grad():
            for name, buffer in learned.model.named_buffers():  # those too that are in no `state_dict`
                state.model.get_buffer(name).copy_(buffer)
        rates = [group["lr"] for group in state.optimizer.param_groups]
        saved = optimizer_by_name(learned.model, learned.optimizer)
        load_optimizer_by_name(state.model, state.optimizer, copy.deepcopy(saved))
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
