"""The Evolver: trains a model and lets it change its own architecture while it trains."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from evolve.data import as_batches
from evolve.data.trees import Batch
from evolve.distributed.joining import join_ranks
from evolve.evolver.assembly import set_up
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.configured import arguments_of, heard_by
from evolve.evolver.controller import MutationController
from evolve.evolver.description import describe_run
from evolve.evolver.output import OutputConfig, RunResult, result_of
from evolve.evolver.preflight import check_run
from evolve.evolver.run_config import RunConfig
from evolve.evolver.run_loop import RunLoop
from evolve.evolver.shared_folder import run_folder
from evolve.evolver.together import check_same
from evolve.lineage import Lineage
from evolve.runtime.generators import seed_everything
from evolve.structure.probe import count_parameters
from evolve.tasks import Loss, TaskSource
from evolve.training import TrainingConfig, place_model, train_step
from evolve.training.checkpoint import restore
from evolve.training.events import Callback, CheckpointSaved, EpochEnded, EventStream, RunBegun, RunFinished, StepMade
from evolve.training.interrupt import Interrupt
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.metrics import Meter
from evolve.training.monitor import Patience, last_is_best
from evolve.training.new_budget import budget_of
from evolve.training.optim import OptimizerConfig
from evolve.training.progress import Progress
from evolve.training.restoring import fitting
from evolve.training.run_files import RunFiles

logger = logging.getLogger(__name__)


class Evolver:
    """Trains a model, mutates it in place as scheduled, logs every attempt, and can be stopped and resumed.

    Args:
        model: Any module; it stays the same object.
        train_data: A Dataset, a DataLoader, `(inputs, targets)` tensors or `evolve.data.Batches`.
        val_data: Held-out data of the same kinds.
        optimizer: An optimizer over the model's parameters, or the configuration of one.
        lr_schedule: Its configuration, or a schedule that moves once a step (`ReduceLROnPlateau` with each evaluation).
        training: How to train.
        evolution: When, what and how far to mutate.
        output: The run folder, or its configuration; None writes nothing.
        task: What a batch is, its loss and its metrics: a task, its configuration, its name, or a function
            `(model, batch) -> loss` or `-> (loss, outputs)`; None for a classification.
        loss: `(outputs, targets) -> scalar tensor`, instead of the task's own.
        batch_size: Of datasets and tensors.
        progress: Whether to show the run as it goes; of several devices the first shows it, writes and logs.
        callbacks: Functions that are told of every event (`evolve.training.events`), and may ask the run to stop.
        config_text: The resolved configuration, saved with the run.

    Raises:
        EvolveError: If the device is not there or an option is refused.
        DataError: If the data cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: Any,
        val_data: Any,
        *,
        optimizer: Optimizer | OptimizerConfig | None = None,
        lr_schedule: LrScheduleConfig | LRScheduler | None = None,
        training: TrainingConfig | None = None,
        evolution: EvolutionConfig | None = None,
        output: OutputConfig | str | Path | None = None,
        task: TaskSource | None = None,
        loss: Loss | None = None,
        batch_size: int = 64,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        config_text: str | None = None,
    ) -> None:
        self.training = training or TrainingConfig()
        self.evolution = evolution or EvolutionConfig()
        self.output = output if isinstance(output, OutputConfig) else OutputConfig(dir=str(output) if output else None)
        self.model = model
        self.train_data = as_batches(train_data, batch_size, shuffle=True, seed=self.training.seed)
        self.val_data = as_batches(val_data, batch_size, shuffle=False, seed=self.training.seed)
        self.world = join_ranks(self.training.device)
        place_model(model, self.training)
        self.state = set_up(
            model,
            self.train_data,
            self.training,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            task=task,
            loss=loss,
            probe=self.evolution.probe,
            world=self.world,
        )
        self.monitor = self.state.monitor
        given = {"model": model, "train_data": train_data, "val_data": val_data, "optimizer": optimizer}
        more = {"lr_schedule": lr_schedule, "task": task, "loss": loss, "callbacks": list(callbacks)}
        told = config_text or describe_run(self, {**given, **more})
        self._folder = run_folder(self.world, self.output, told, bool(config_text))
        self.events, self._interrupt = EventStream(heard_by(callbacks, self.world.first)), Interrupt()
        self._meter, self._patience = Meter(self.state), Patience(self.monitor, self.training.patience)
        self.events.listen(self._patience, *Patience.HEARS)
        if self.state.best:
            self.events.listen(self.state.best, EpochEnded)
        loop = RunLoop(self.state, self.train_data, self.val_data, self.evolution.probe, more=[self._meter])
        loop.ended = lambda: self._patience.over
        self.controller = MutationController(
            self.evolution, loop, events=self.events, run=self, stopping=self._stopping
        )
        self.state.new_parameters = self.controller.new_parameters
        first, steps = self.world.first, self.state.epoch_steps
        self._display = Progress(self.training.budget, steps) if progress and first else None
        if self.output.dir and first:
            self.events.listen(RunFiles(self.output.folder, loop.example), *RunFiles.HEARS)
        if self._display:
            self.events.listen(self._display, *self._display.hears)
        self._params_from, self._begun, self._stop = count_parameters(model), False, False

    @classmethod
    def from_config(cls, config: RunConfig | str | Path, overrides: tuple[str, ...] = ()) -> Evolver:
        """Returns the Evolver of a YAML file or a loaded configuration.

        Raises:
            ConfigError: With all faults of the file.
        """
        return cls(**arguments_of(config, overrides))

    def run(self) -> RunResult:
        """Trains until the budget is spent, or it is told to stop; an Evolver that was stopped goes on.

        The last step may go beyond a budget of seconds or FLOPs.

        Raises:
            NonFiniteLossError: If the loss became NaN or infinite; likewise NonFiniteModelError for the model.
            MisfitError: If model, data and configuration do not fit together.
            EvolveError: If the run folder holds another run, is in use by one or cannot be written to.
            RanksDifferError: If the ranks of a run on several devices do not hold the same.
            LostRankError: If another rank has ended or does not answer.
        """
        check_same(self.state, self.evolution, {"training": self.train_data, "held-out": self.val_data}, self.lineage)
        if not self._begun:  # before the folder is made
            check_run(self.evolution, self.state, self.train_data, self.val_data, self.monitor)
        with self._folder.held():
            return self._run()

    def _run(self) -> RunResult:
        self._begin()
        state, self._stop, self._interrupt = self.state, False, Interrupt()
        self.world.agree_to_stop(False)
        with self._interrupt, self._display or nullcontext():
            self.events.emit(RunBegun(self, self.training.budget, state.epoch_steps, state.step, state.progress))
            state.lap = time.perf_counter()  # what listeners take to begin is not of the budget
            while not self.finished and not self._stopping():
                self._evolve()  # what a resumed run still has to do
                for batches in self._windows():
                    if not self._step(batches):
                        break
            if self.finished:
                self._close()
            self._save()
            if self.finished and self.state.best:  # what was saved is where the training stands
                self.state.best.put_back()
            self.events.emit(RunFinished(self, self.finished))
        return result_of(self, self._params_from, self._folder.path, self._interrupt.signal)

    def stop(self) -> None:
        """Asks a running `run` to end after the present step; for callbacks and other threads."""
        self._stop = True

    def save(self) -> None:
        """Writes a checkpoint of where the run stands, as `run` does, for a model that was trained elsewhere."""
        with self._folder.held():
            self._begin()
            self._save()

    def _stopping(self) -> bool:
        return self.world.stopping(self._asked_to_stop)

    @property
    def _asked_to_stop(self) -> bool:
        return self._stop or self._interrupt.signal is not None

    def restore(self) -> Evolver:
        """Takes up the newest checkpoint of the folder and returns the Evolver, built as the one that wrote it.

        Raises:
            CheckpointError: If there is none, or it does not fit.
        """
        self.state.unwrap()
        checkpoint = self._folder.open_newest()
        progress = restore(checkpoint, self.state)
        with fitting(checkpoint.path):
            self.lineage.records[:] = checkpoint.records
            self.history[:] = progress["history"]
            self._patience.look(self.history)
            self._meter.load_state_dict(progress["meter"])
            self._params_from = progress["params_from"]
            self.controller.load_decisions(progress, moved=budget_of(progress) != self.training.budget)
            self.events.load_state(progress["callbacks"])
        self._begun = True
        logger.info("Resumed %s at step %d.", checkpoint.path, self.state.step)
        return self

    @property
    def lineage(self) -> Lineage:
        """Every mutation attempted so far."""
        return self.controller.lineage

    @property
    def history(self) -> list[dict[str, Any]]:
        """One line of metrics for each epoch; the last may be of a part of one, where the run ended."""
        return self.controller.history

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or patience is at its end."""
        return self.state.progress >= 1 or self._patience.over

    @property
    def stopped_early(self) -> bool:
        """Whether patience is at its end."""
        return self._patience.over

    def _windows(self) -> Iterator[list[Batch]]:
        """The batches of each optimizer step, from where the running epoch stands."""
        batches = iter(self.train_data.epoch(self.state.epoch, self.state.batch))
        while not (self.finished or self._stopping()) and (window := list(islice(batches, self.training.accumulate))):
            yield window

    def _step(self, batches: list[Batch]) -> bool:
        """Trains, judges and mutates; False where the run went back to before a mutation, and to other batches."""
        tested, epochs = self.controller.testing, len(self.history)
        try:
            result = train_step(self.state, batches, self.controller.before_step)
        except Exception as error:  # of a mutation that has yet to prove itself, or the run's own
            if self.controller.after_step(error):
                self._folder.settle(kept=False)
                return False
            raise
        self._meter.add(result)
        line = self._tick(result.loss)
        went_back = self.controller.after_step(result.loss, line)
        if tested and not self.controller.testing:
            self._folder.settle(kept=not went_back)
        if went_back:
            return False
        if len(self.history) > epochs:
            self._keep_best()
        if self.state.batch == 0 and self.state.epoch % self.output.checkpoint_every == 0 and not self.finished:
            self._save()  # before a mutation, which has yet to come through its first step
        return self._evolve()

    def _tick(self, loss: float) -> dict[str, Any] | None:
        """After an optimizer step: returns the line of metrics where it was the last of its epoch, or of the run."""
        state = self.state
        state.count_step()
        if self.events.heard(StepMade):
            step = math.ceil(state.batch / self.training.accumulate)
            self.events.emit(StepMade(self, state.epoch, state.step, step, loss, state.progress))
        if epoch_end := state.batch >= len(self.train_data):
            state.epoch, state.batch = state.epoch + 1, 0
        ends = epoch_end or state.progress >= 1 or self.stopped_early
        return self._meter.measure(self.val_data.epoch(0)) if ends else None

    def _close(self) -> None:
        """At the end of the budget: measures what is left, and brings the last line up to date."""
        if self._meter.began:  # what a mutation that went back, or children, left of an epoch
            self.controller.end_epoch(self._meter.measure(self.val_data.epoch(0)))
            self._keep_best()
        if self.history:
            self._meter.bring_up_to_date(self.history[-1])

    def _evolve(self) -> bool:
        """Makes a mutation where one is due; False where a copy became the model, which has seen further batches."""
        step = self.state.step
        self.world.agree_to_stop(self._asked_to_stop)
        if self.controller.due:
            if self.controller.probation:
                self._save()  # a run that is stopped within the probation begins again here
            self.controller.mutate()
            self.state.finite.look(self.model)
            self.world.agree_to_stop(self._asked_to_stop)
        return step == self.state.step

    def _keep_best(self) -> None:
        """Saves the epoch that has just ended if none did better."""
        if last_is_best(self.history, self.monitor):
            self._folder.save_best(self.state, self.lineage, self._progress(), testing=self.controller.testing)

    def _save(self) -> None:
        if self.controller.testing or self.state.has_best_weights:
            return  # what is on probation is saved when it has passed
        if saved := self._folder.save(self.state, self.lineage, self._progress()):
            self.events.emit(CheckpointSaved(self, saved, self.state.step))

    def _progress(self) -> dict[str, Any]:
        """What a run needs to go on from here beside what training moves, as JSON values."""
        return {
            "history": self.history,
            "meter": self._meter.state_dict(),
            **self.controller.decisions(),
            "params_from": self._params_from,
            "callbacks": self.events.state(),
        }

    def _begin(self) -> None:
        """Makes the run folder ready, and seeds a new run."""
        self._folder.begin(self.state.step, testing=self.controller.testing)
        if not self._begun:
            seed_everything(self.training.seed)
            self._begun = True
