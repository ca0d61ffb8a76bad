"""The Evolver's own loop, as its mutations see it."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from typing_extensions import Self

from evolve.budget import FORWARD_AND_BACKWARD
from evolve.data import Batches
from evolve.data.trees import Batch
from evolve.distributed.world import World
from evolve.errors import EvolveError, MisfitError
from evolve.evolver.devices import Devices
from evolve.evolver.loop import Loop, OutputLoss, Score, Stretch
from evolve.evolver.together import SeveralDevices
from evolve.mutation import MutationResult
from evolve.runtime.generators import preserved_rng
from evolve.structure.gradients import detached
from evolve.training import TrainState, evaluate, place, place_model, train_step
from evolve.training.snapshot import Stateful
from evolve.training.state import Counts
from evolve.training.step import Evaluated, EvaluationMeter, evaluated, follow_schedule

_LEFT_BEHIND: dict[str, Any] = dict.fromkeys(("scheduler", "ema", "best", "new_parameters"))  # by a copy

logger = logging.getLogger(__name__)


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
    def epoch_steps(self) -> float:
        """Optimizer steps of an epoch."""
        return self.state.epoch_steps

    @property
    def in_seconds(self) -> bool:
        """Whether the budget is in seconds."""
        return self.state.config.budget.unit == "seconds"

    @property
    def held_until(self) -> float:
        """Part of the budget up to which the learning rate is held."""
        state, plan = self.state, self.state.lr_schedule
        return 1.0 if plan is None else plan.held_until(state.scheduler, state.ticks, state.epoch_steps)

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
        parts: list[Stateful | None] = [Counts(state), state.scheduler, state.scaler, state.ema, state.best]
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
            scaler=scaler,
            world=World(),
            took=state.took.copy() if state.forward is state.model else deque(),  # copies are not compiled, and alone
            **_LEFT_BEHIND,
        )
        return twin

    def train(self, steps: int, stopping: Callable[[], bool]) -> bool:
        """Trains for some steps; the learning rate falls from the present one to zero by half a cosine.

        It ends early where a budget of FLOPs or seconds is spent, or the run is to stop.
        """
        groups = self.state.optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        coming = self._windows()
        for step in range(steps):
            share = (1 + math.cos(math.pi * step / steps)) / 2
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * share
            self._step_of_child(coming)
            if self._spent or stopping():
                return False
        return True

    def race(self, steps: int, stopping: Callable[[], bool], most: float = math.inf) -> Stretch | None:
        """Trains for some steps at the present learning rate, fewer where they would cost more than `most`.

        Seconds are known afterwards only: there it ends with the step that comes to `most`. One costs what it took here
        or in the run right before, where that is less. None where budget or `most` pays for none, or it is to stop.
        """
        if self._last_steps(steps):
            logger.info("No race: its %d steps would be the rest of the run.", steps)
            return None
        if not self.in_seconds and most < math.inf:
            steps = min(steps, int(most / self._price(0.0)))
        losses: list[float] = []
        coming, times = self._windows(), [time.perf_counter()]
        while len(losses) < steps:
            losses.append(self._step_of_child(coming))
            times.append(time.perf_counter())
            if self._spent or stopping():
                return None
            if self.in_seconds and self._price(times[-1] - times[0]) >= most:
                break
        if not losses:
            logger.info("No race: a single step of the larger model costs more than a race may.")
            return None
        took, before = [b - a for a, b in itertools.pairwise(times)], self.state.took
        full = len(before) == before.maxlen  # what disturbs steps only makes them longer
        return Stretch(losses, self._price(min(map(statistics.median, [took, before] if full else [took]))))

    def _step_of_child(self, coming: Iterator[list[Batch]]) -> float:
        loss = train_step(self.state, next(coming)).loss
        self.state.count_time()
        return loss

    def _windows(self) -> Iterator[list[Batch]]:
        """Yields the batches of each optimizer step that is next; as in the run, none reaches into the next epoch."""
        epoch, start = self.state.epoch, self.state.batch
        while True:
            batches = iter(self._train.epoch(epoch, start))
            while window := list(islice(batches, self.state.config.accumulate)):
                yield window
            epoch, start = epoch + 1, 0

    def _last_steps(self, steps: int) -> bool:
        """Whether so many steps are all that a budget of steps or epochs has left."""
        state, budget = self.state, self.state.config.budget
        then = state.step + steps
        spent = state.spent._replace(epochs=then / state.epoch_steps, steps=then)
        return budget.unit in ("epochs", "steps") and budget.progress(spent) >= 1

    @property
    def _spent(self) -> bool:
        return self.state.config.budget.unit in ("flops", "seconds") and self.state.progress >= 1

    def _price(self, seconds: float) -> float:
        """Part of the budget that an optimizer step takes, of so many seconds."""
        state, budget = self.state, self.state.config.budget
        flops = FORWARD_AND_BACKWARD * state.flops_per_sample * state.epoch_samples / state.epoch_steps
        prices = {"epochs": 1 / state.epoch_steps, "steps": 1.0, "seconds": seconds, "flops": flops}
        return prices[budget.unit] / budget.amount

    def glance(self, batches: int) -> float:
        """Returns the mean loss on the first held-out batches."""
        meter = EvaluationMeter(self.state)
        with preserved_rng(self.state.config.seed):
            for found in evaluated(self.state, islice(self._val.epoch(0), batches)):
                meter.add(found)
        self.state.count_time()
        return meter.compute()["loss"]

    def advance(self, steps: int) -> None:
        """Moves the run on behind the batches that were next."""
        state, accumulate = self.state, self.state.config.accumulate
        epochs, done = divmod(math.ceil(state.batch / accumulate) + steps, state.epoch_steps)
        state.step, state.epoch, state.batch = state.step + steps, state.epoch + epochs, done * accumulate
        follow_schedule(state, steps, epochs)

    def spend(self, child: Self) -> None:
        """Takes over the FLOPs and seconds that another loop has spent, which went on from what this one had."""
        self.state.flops, self.state.seconds, self.state.lap = child.state.flops, child.state.seconds, child.state.lap

    def limit_flops(self, epochs: float) -> int | None:
        """Returns the most FLOPs a sample of a model that the rest of the budget trains for so many epochs."""
        return self.state.affordable(epochs)

    def mutated(self, applied: Sequence[MutationResult]) -> None:
        """Places new parts where the run trains, and counts the FLOPs of the model as it is now."""
        place_model(self.model, self.state.config)
        self.state.flops_per_sample = applied[-1].record.flops_after or self.state.flops_per_sample
        self.state.took.clear()

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
