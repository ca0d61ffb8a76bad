"""The Evolver: trains a model and lets it change its own architecture while it trains."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from evolve.care import NewParameters
from evolve.config import dump_yaml
from evolve.data import as_batches, build_data
from evolve.errors import EvolveError, NonFiniteLossError
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.controller import MutationController
from evolve.evolver.output import OutputConfig, RunResult, begin_folder, flops_per_sample
from evolve.evolver.preflight import check_evolution
from evolve.evolver.run_config import RunConfig, load_config
from evolve.lineage import Lineage
from evolve.models import build_model
from evolve.plugins import load_plugins
from evolve.runtime.generators import seed_everything
from evolve.schedules import Clock
from evolve.structure.probe import count_parameters
from evolve.training import (
    Batch,
    Loss,
    TrainingConfig,
    advance_schedule,
    check_data,
    create_state,
    evaluate,
    place_model,
)
from evolve.training.checkpoint import newest_checkpoint, restore, save_checkpoint
from evolve.training.interrupt import Interrupt
from evolve.training.metrics import Metrics
from evolve.training.optim import LrScheduleConfig, OptimizerConfig
from evolve.training.progress import Progress

logger = logging.getLogger(__name__)


class Evolver:
    """Trains a model, mutates it in place as scheduled, logs every attempt, and can be stopped and resumed.

    Args:
        model: Any module; it stays the same object.
        train_data: A Dataset, a DataLoader, `(inputs, targets)` tensors or `evolve.data.Batches`.
        val_data: Held-out data of the same kinds.
        optimizer: An optimizer over the model's parameters, or the configuration of one.
        lr_schedule: The configuration of a learning rate schedule, or a schedule that moves once a step.
        training: How to train.
        evolution: When, what and how far to mutate.
        output: The run folder, or its configuration; None writes nothing.
        loss: `(outputs, targets) -> scalar tensor`, instead of the configured one.
        batch_size: Of datasets and tensors.
        progress: Whether to show the run as it goes.
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
        loss: Loss | None = None,
        batch_size: int = 64,
        progress: bool = True,
        config_text: str | None = None,
    ) -> None:
        self.training = training or TrainingConfig()
        self.evolution = evolution or EvolutionConfig()
        self.output = output if isinstance(output, OutputConfig) else OutputConfig(dir=str(output) if output else None)
        self.model = model
        seed = self.training.seed
        self.train_data = as_batches(train_data, batch_size, shuffle=True, seed=seed)
        self.val_data = as_batches(val_data, batch_size, shuffle=False, seed=seed)
        place_model(model, self.training)
        self._config_text = config_text
        steps = math.ceil(len(self.train_data) / self.training.accumulate)
        inputs = self.train_data.example(self.evolution.probe)
        self.state = create_state(
            model,
            optimizer if isinstance(optimizer, Optimizer) else (optimizer or OptimizerConfig()).build(model),
            self.training,
            loss=loss,
            lr_schedule=lr_schedule,
            epoch_steps=steps,
            epoch_samples=self.train_data.samples,
            flops_per_sample=flops_per_sample(model, inputs, needed=self.training.flops is not None),
        )
        self.state.new_parameters = NewParameters(self.evolution.care, self.state.optimizer)
        self.display = Progress(progress, self.training.budget, steps)
        self.controller = MutationController(
            self.evolution, self.state, self.train_data, self.val_data, self.display.mutation, self._stopping
        )
        self._metrics = Metrics(Path(self.output.dir) if self.output.dir else None)
        self._params_from = count_parameters(model)
        self._saved: Path | None = None  # the newest checkpoint
        self._begun = False
        self._stop = False
        self._interrupt = Interrupt()

    @classmethod
    def from_config(cls, config: RunConfig | str | Path, overrides: tuple[str, ...] = ()) -> Evolver:
        """Returns the Evolver that a YAML file, or a loaded configuration, describes.

        Raises:
            ConfigError: With all faults of the file.
            EvolveError: If a part cannot be built.
        """
        if not isinstance(config, RunConfig):
            config = load_config(config, overrides)
        load_plugins(config.plugins)
        seed_everything(config.training.seed)
        data = build_data(
            config.data.name,
            batch_size=config.data.batch_size,
            augment=config.data.augment,
            seed=config.training.seed,
            options=config.data.options,
        )
        return cls(
            build_model(config.model.name, **config.model.options),
            data.train,
            data.val,
            optimizer=config.optimizer,
            lr_schedule=config.lr_schedule,
            training=config.training,
            evolution=config.evolution,
            output=config.output,
            config_text=dump_yaml(config),
        )

    def run(self) -> RunResult:
        """Trains until the budget is spent, or it is told to stop; an Evolver that was stopped goes on.

        The last step may go beyond a budget of seconds or FLOPs.

        Raises:
            NonFiniteLossError: If the loss became NaN or infinite; the last checkpoint is from before.
            EvolveError: If the run folder already holds another run.
        """
        self._begin()
        self._stop, self._interrupt = False, Interrupt()
        self.state.lap = time.perf_counter()
        with self._interrupt, self.display:
            while not self.finished and not self._stopping():
                self._evolve()  # what a resumed run still has to do
                for batches in self._windows():
                    if not self._step(batches):
                        break
            if self.finished:
                if self._metrics.pending:  # what a mutation that went back, or children, left of an epoch
                    self._measure()
                self._metrics.close(self.state)
            self._save()
        return self._result(self._interrupt.signal)

    def stop(self) -> None:
        """Asks a running `run` to end after the present step; for callbacks and other threads."""
        self._stop = True

    def _stopping(self) -> bool:
        return self._stop or self._interrupt.signal is not None

    def restore(self) -> Evolver:
        """Takes up the newest checkpoint of the run folder; the Evolver must be built as the one that wrote it.

        Returns:
            Itself: `Evolver(...).restore().run()`.

        Raises:
            CheckpointError: If there is none, or it does not fit.
        """
        path = newest_checkpoint(self._folder())
        records, progress = restore(path, self.state)
        self.controller.proposer.lineage = Lineage(self._folder() / "lineage.jsonl", records)
        self._take_up(progress)
        self._begun, self._saved = True, path
        logger.info("Resumed %s at step %d.", path, self.state.step)
        return self

    @property
    def lineage(self) -> Lineage:
        """Every mutation attempted so far."""
        return self.controller.proposer.lineage

    @property
    def history(self) -> list[dict[str, Any]]:
        """One line of metrics for each epoch; the last may be of a part of one, where the run ended."""
        return self._metrics.lines

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.state.progress >= 1

    def _windows(self) -> Iterator[list[Batch]]:
        """The batches of each optimizer step, from where the running epoch stands."""
        batches = iter(self.train_data.epoch(self.state.epoch, self.state.batch))
        while not (self.finished or self._stopping()) and (window := list(islice(batches, self.training.accumulate))):
            yield window

    def _step(self, batches: list[Batch]) -> bool:
        """Trains, judges and mutates; False where the run went back to before a mutation, and to other batches."""
        try:
            self._metrics.add(self.controller.step(batches))
        except NonFiniteLossError as error:
            if self._goes_back(self.controller.condemn()):
                return False
            if self._saved is None:
                raise
            raise NonFiniteLossError(f"{error} The last checkpoint, {self._saved}, is from before it.") from error
        clock = self._tick()
        if not self.finished:
            self.controller.ask(clock)
        if self._goes_back(self.controller.judge(self.finished)):
            return False
        if clock.epoch_end and self.state.epoch % self.output.checkpoint_every == 0 and not self.finished:
            self._save()  # before a mutation, which has yet to come through its first step
        self._evolve()
        return True

    def _tick(self) -> Clock:
        """After an optimizer step: measures where it was the last of its epoch, or of the run."""
        state = self.state
        state.count_time()
        epoch_end = state.batch >= len(self.train_data)
        self.display.step(state.epoch, math.ceil(state.batch / self.training.accumulate), state.progress)
        if epoch_end:
            state.epoch, state.batch = state.epoch + 1, 0
        if epoch_end or self.finished:
            self._measure()
        return Clock(state.epoch, state.step, epoch_end, self.history, state.progress)

    def _measure(self) -> None:
        """Evaluates, and writes a line of metrics."""
        val = evaluate(self.state, self.val_data.epoch(0))
        self.state.count_time()
        self._metrics.write(self.state, val)
        advance_schedule(self.state, "epoch", val["loss"])
        self.display.epoch(self.history[-1])

    def _evolve(self) -> None:
        """Makes a mutation where one is due and none is on probation."""
        if not self.controller.waiting or self.finished:
            return
        if self.controller.probation:
            self._save()  # a run that is stopped within the probation begins again here
        self.controller.make(self.history, self._progress)

    def _goes_back(self, to: Mapping[str, Any] | None) -> bool:
        """Takes up what was before a mutation that did not pass, where there is such; says whether."""
        if to is not None:
            self._take_up(to)
        return to is not None

    def _save(self) -> None:
        if self.output.dir is not None and not self.controller.testing:  # it is saved when it has passed
            self._saved = save_checkpoint(self._folder(), self.state, self.lineage, self._progress(), self.output.keep)

    def _progress(self) -> dict[str, Any]:
        """What a run needs to go on from here beside what training moves, as JSON values."""
        return {
            **self._metrics.state(),
            **self.controller.state(),
            "params_from": self._params_from,
        }

    def _take_up(self, progress: Mapping[str, Any]) -> None:
        """Puts back what `_progress` returned."""
        self._metrics.load_state(progress)
        self._params_from = progress["params_from"]
        self.controller.load_state(progress)

    def _folder(self) -> Path:
        if self.output.dir is None:
            raise EvolveError("This Evolver has no run folder. Give it one: output='runs/mine'.")
        return Path(self.output.dir)

    def _begin(self) -> None:
        """On the first call of a run that was not restored: seeds, and makes the run folder."""
        if self._begun:
            return
        measured = check_data(self.state, self.train_data, self.val_data)
        check_evolution(self.evolution, self.state, self.train_data.examples(self.evolution.probe), measured)
        if self.output.dir is not None:
            begin_folder(self._folder(), self.output.overwrite, self._config_text)
            self.controller.proposer.lineage = Lineage(self._folder() / "lineage.jsonl")
        seed_everything(self.training.seed)
        self._begun = True

    def _result(self, number: int | None) -> RunResult:
        applied = len(self.lineage.applied)
        return RunResult(
            metrics=dict(self.history[-1]) if self.history else {},
            applied=applied,
            refused=len(self.lineage) - applied,
            params_from=self._params_from,
            params_to=count_parameters(self.model),
            folder=Path(self.output.dir) if self.output.dir else None,
            progress=self.state.progress,
            finished=self.finished,
            signal=signal.Signals(number) if number else None,
        )
