"""The Evolver's own loop, as its mutations see it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from typing_extensions import Self

from evolve.data import Batches
from evolve.data.trees import Batch
from evolve.distributed.world import World
from evolve.errors import EvolveError, MisfitError
from evolve.evolver.devices import Devices
from evolve.evolver.loop import Loop, OutputLoss, Score, detached
from evolve.evolver.together import SeveralDevices
from evolve.mutation import MutationResult
from evolve.runtime.generators import preserved_rng
from evolve.training import TrainState, evaluate, place, place_model, train_step
from evolve.training.snapshot import Stateful
from evolve.training.step import Evaluated, EvaluationMeter, evaluated


class RunLoop(Loop):
    """The training of an Evolver.

    Args:
        state: What training moves; it counts epochs and steps by itself.
        train: Training data; its first samples are the probe batch.
        val: Held-out data.
        probe: Samples of the probe batch.
        more: What goes back with model and optimizer beside what the state holds.
    """

    def __init__(
        self,
        state: TrainState,
        train: Batches,
        val: Batches,
        probe: int,
        more: Sequence[Stateful] = (),
    ) -> None:
        batch = train.examples(probe)
        super().__init__(
            state.model,
            state.optimizer,
            example_inputs=state.task.arguments(state.model, batch),
            loss=state.task.loss_of(state.model, place(state, batch)),
            monitor=state.monitor,
            ema=state.ema,
            also=more,
            seed=state.config.seed,
        )
        self.state = state
        self.ended: Callable[[], bool] = lambda: False  # says whether patience is at its end
        self.devices = SeveralDevices(state) if state.world.size > 1 else Devices()
        self._train, self._val = train, val

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.state.epoch

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.state.step

    @property
    def progress(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        return self.state.progress

    @property
    def over(self) -> bool:
        """Whether the budget is spent, or patience is at its end."""
        return self.state.progress >= 1 or self.ended()

    @property
    def knows_progress(self) -> bool:
        """A run has a budget."""
        return True

    @property
    def flops_per_sample(self) -> int:
        """FLOPs of a forward pass of one sample; 0 where they cannot be counted."""
        return self.state.flops_per_sample

    @property
    def evaluates(self) -> bool:
        """A run has held-out data."""
        return True

    def also(self) -> list[Stateful]:
        """Returns what goes back with model and optimizer."""
        state = self.state
        parts: list[Stateful | None] = [_Counts(state), state.scheduler, state.scaler, state.ema]
        return [part for part in parts if part is not None] + self._also

    def count(self, epoch_end: bool) -> None:
        """The state has counted the step already."""

    def count_time(self) -> None:
        """Adds the wall time since it was last counted to what the run has spent."""
        self.state.count_time()

    def score(self, metric: str) -> Score:
        """Returns a metric of the model on the held-out data, and on each batch of it.

        Raises:
            EvolveError: If the run does not measure it.
        """
        name, state = metric.removeprefix("val_"), self.state
        whole, values = EvaluationMeter(state), []
        with preserved_rng(state.config.seed):  # as `evaluate` does
            for found in evaluated(state, self._val.epoch(0)):
                whole.add(found)
                values.append(_of_one_batch(state, name, found))
        metrics = whole.compute()
        if name not in metrics:
            raise EvolveError(f"This run has no {metric}. It measures {', '.join(f'val_{key}' for key in metrics)}.")
        value, values = state.world.tell([metrics[name], values])
        return Score(value, values)

    def held_out(self) -> float:
        """Returns the monitored metric on the held-out data."""
        return evaluate(self.state, self._val.epoch(0))[self.monitor.metric.removeprefix("val_")]

    def score_batch(self, batches: int) -> tuple[Any, OutputLoss]:
        """Returns what the model is called with on the next training batches, and the loss of outputs on them."""
        state = self.state
        with preserved_rng():
            found = place(state, state.task.join(list(islice(self._coming(), batches))))
        return state.task.arguments(state.model, found), state.task.loss_of(state.model, found)

    def loss_batches(self) -> Iterable[tuple[Any, OutputLoss]]:
        """Returns the training batches that are next: inputs, and the loss of outputs on them."""
        return _LossBatches(self)

    def batches(self, count: int) -> Iterable[Any]:
        """Yields what the model is called with on the training batches of an epoch, from its beginning."""
        for batch in islice(self._train.onward(self.state.epoch, 0), count):
            yield self.state.task.arguments(self.model, place(self.state, batch))

    def copied(self) -> Self:
        """Returns a loop over copies of model, optimizer and gradient scaler."""
        state = self.state
        model, optimizer, scaler = copy.deepcopy((state.model, state.optimizer, state.scaler), detached(state.model))
        twin = copy.copy(self)
        twin.model, twin.optimizers, twin._also = model, [optimizer], []
        twin.devices = Devices()  # children are trained on one
        twin.state = replace(
            state,
            model=model,
            forward=model,
            optimizer=optimizer,
            scheduler=None,
            scaler=scaler,
            ema=None,
            new_parameters=None,
            world=World(),
        )
        return twin

    def train(self, steps: int, stopping: Callable[[], bool]) -> bool:
        """Trains for some steps; the learning rate falls from the present one to zero by half a cosine.

        It ends early where a budget of FLOPs or seconds is spent, or the run is to stop.
        """
        state = self.state
        rates = [float(group["lr"]) for group in state.optimizer.param_groups]
        coming = self._coming()
        for step in range(steps):
            share = (1 + math.cos(math.pi * step / steps)) / 2
            for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            train_step(state, list(islice(coming, state.config.accumulate)))
            state.count_time()
            spent = state.config.budget.unit in ("flops", "seconds") and state.progress >= 1
            if spent or stopping():
                return False
        return True

    def spend(self, child: Self) -> None:
        """Adds FLOPs and seconds of a child's training to what the run has spent."""
        self.state.flops, self.state.seconds, self.state.lap = child.state.flops, child.state.seconds, child.state.lap

    def limit_flops(self, epochs: float) -> int | None:
        """Returns the most FLOPs a sample of a model that the rest of the budget trains for so many epochs."""
        return self.state.affordable(epochs)

    def mutated(self, applied: Sequence[MutationResult]) -> None:
        """Places new parts where the run trains, and counts the FLOPs of the model as it is now."""
        place_model(self.model, self.state.config)
        self.state.flops_per_sample = applied[-1].record.flops_after or self.state.flops_per_sample

    def _coming(self) -> Iterable[Batch]:
        return self._train.onward(self.state.epoch, self.state.batch)


class _LossBatches:
    """What a model is called with on the training batches that are next, and its loss; without an end, anew each time.

    Args:
        loop: Of the training.
    """

    def __init__(self, loop: RunLoop) -> None:
        self._loop = loop

    def __iter__(self) -> Iterator[tuple[Any, OutputLoss]]:
        state = self._loop.state
        for batch in self._loop._coming():
            found = place(state, batch)
            yield state.task.arguments(state.model, found), state.task.loss_of(state.model, found)


def _of_one_batch(state: TrainState, name: str, found: Evaluated) -> float:
    """Returns a metric of one batch; NaN where a batch is too little for it, as one sample is for R2."""
    meter = EvaluationMeter(state, name)
    try:
        meter.add(found)
        return meter.compute().get(name, math.nan)
    except MisfitError:  # no fault of the data: on all of them the metric is known
        return math.nan


@dataclass
class _Counts:
    """Where a run stands. It goes back with the weights; what was spent stays spent."""

    state: TrainState

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        return dict(self.state.counts())

    def load_state_dict(self, counts: Mapping[str, Any]) -> None:
        """Takes up the counts, but for time and FLOPs."""
        self.state.take_counts({**counts, "seconds": self.state.seconds, "flops": self.state.flops})
