"""Everything about the mutations of a training, each from the moment when it is due until it has passed its tests."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from evolve.care import GroupSparsity, NewParameters
from evolve.errors import EvolveError, NonFiniteLossError
from evolve.evolver.arguments import check_arguments, numbers, one_value, saved_records
from evolve.evolver.blame import WayBack, non_finite, one_line
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.fit import check_loop
from evolve.evolver.loop import Loop
from evolve.evolver.probation import Probation
from evolve.evolver.proposer import Proposer
from evolve.evolver.timing import Timing
from evolve.lineage import Lineage, Record, Verdict
from evolve.runtime.memory import out_of_memory
from evolve.schedules import Clock
from evolve.structure.probe import count_parameters
from evolve.training.events import (
    BestImproved,
    Callback,
    EpochEnded,
    Event,
    EventStream,
    MutationTried,
    Run,
    VerdictGiven,
)
from evolve.training.monitor import best_value, last_is_best

logger = logging.getLogger(__name__)


class MutationController:
    """Makes mutations when they are due, one at a time, and sees each of them through.

    It calls no training step itself: any loop can drive it. Schedule, policy, attempts, care of new parameters,
    probation and going back are its business; the Evolver is its first user.

    Args:
        config: When, what and how far to mutate.
        loop: What is trained, and what can be asked of the training.
        callbacks: Told of each mutation and each verdict; see `evolve.training.events`.
        events: Another stream to tell, instead of one of its own.
        run: The run that events belong to; the controller itself if None.
        stopping: Says whether the run is to stop; None for `stop()` of its own.

    Raises:
        EvolveError: If the configuration asks for something that the loop cannot do.

    Example:
        >>> loop = evolve.Loop(model, optimizer, example_inputs=images[:8])
        >>> controller = evolve.MutationController(config, loop)
        >>> for inputs, targets in batches:
        ...     optimizer.zero_grad()
        ...     loss = criterion(model(inputs), targets)
        ...     loss.backward()
        ...     controller.before_step()
        ...     optimizer.step()
        ...     controller.after_step(loss)
        ...     if controller.due:
        ...         controller.mutate()
    """

    def __init__(
        self,
        config: EvolutionConfig,
        loop: Loop,
        *,
        callbacks: Iterable[Callback] = (),
        events: EventStream | None = None,
        run: Run | None = None,
        stopping: Callable[[], bool] | None = None,
    ) -> None:
        check_arguments(config, loop)
        self.config = config
        self.loop = loop
        self.lineage = Lineage()
        self.history: list[dict[str, Any]] = []
        self.events = events or EventStream(callbacks)
        self.new_parameters = NewParameters(config.care, loop.optimizers)
        self.sparsity = GroupSparsity(config.care.sparsity, loop.example) if config.care.sparsity else None
        self.proposer = Proposer(config, loop, self.lineage, self.new_parameters, self._stopping)
        self.probation = Probation(config.probation, loop) if config.probation else None
        self._timing = Timing(config.schedule.build() if config.schedule else None, loop.monitor)
        self._run: Run = run or self
        self._stop_asked = False
        self._told_to_stop = stopping
        self._back: WayBack | None = None  # until the first step after a mutation is made, and its probation is over
        self._records: list[int] = []  # of that mutation and of what followed it
        check_loop(config, loop, self._timing.schedule)

    @property
    def model(self) -> nn.Module:
        """The model as it stands."""
        return self.loop.model

    @property
    def testing(self) -> bool:
        """Whether a mutation is on probation."""
        return self.probation is not None and bool(self.probation.records)

    @property
    def due(self) -> str | None:
        """Why a mutation is due now; None where none is, one is on probation, or the training is to stop."""
        due = self._timing.due
        return None if due is None or self.testing or self._stopping() or self.loop.over else due

    def stop(self) -> None:
        """Asks the training to stop: nothing is due any more, and `stopped` is true."""
        self._stop_asked = True

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the training to stop; a loop of one's own has to look."""
        return self._stopping()

    def before_step(self) -> None:
        """To be called when the gradients are complete, on their own scale, right before the optimizers step."""
        if self.sparsity is not None:
            self.sparsity.add(self.model, sum(record.operator == "narrow" for record in self.lineage.applied))
        self.new_parameters.before_step(self.model)

    def after_step(self, outcome: float | Tensor | Exception, metrics: Mapping[str, Any] | None = None) -> bool:
        """To be called when an optimizer step has been made, or has failed.

        Counts the step, asks the schedule, and judges what is on probation. Where the first step after a mutation, or a
        later one of its probation, has failed, the training goes back to before the mutation.

        Args:
            outcome: The training loss of the step, or the error that it ended in.
            metrics: Where the step was the last of its epoch: what was measured, such as `{"val_loss": 0.3}`.

        Raises:
            EvolveError: If the loss or a metric is no number.

        Returns:
            Whether the training has gone back: model, optimizers and all that `Loop.also` names are as they were then.
            Where an error was given and this is False, the error is not the mutation's: raise it.
        """
        if isinstance(outcome, Exception):
            return self._survive(outcome)
        measured = None if metrics is None else numbers(metrics)
        loss = one_value(outcome)
        # Without a mutation to blame nobody waits for the value of the loss.
        if self._back is not None and (fault := non_finite(self.model, float(loss), self.loop.step)):
            return self._survive(fault)
        self.new_parameters.after_step()
        self.loop.count(measured is not None)
        self.proposer.watch(loss)
        self.events.emit(*self.proposer.news(self._run))
        if not self.testing:
            self._back = None  # the first step after a mutation went well
        if measured is not None:
            self.end_epoch(measured)
        if self._timing.asks(measured is not None) and not self.loop.over:
            at = (self.loop.epoch, self.loop.step, measured is not None, self.history, self.loop.progress)
            self._timing.ask(Clock(*at, self.proposer.leaving))
            self._timing.due = self.loop.devices.agreed(self._timing.due)
        return self.probation is not None and self._carry_out(self.probation.verdict())

    def mutate(self) -> list[Record]:
        """Makes the mutation that is due, or one that is asked for; returns the records of all attempts.

        Raises:
            EvolveError: If another one is still on probation.
        """
        if self.testing:
            raise EvolveError("A mutation is on probation. Train on until its verdict before you ask for another one.")
        reason = self._timing.take()
        first, policy = len(self.lineage), self.proposer.policy.state()
        self.loop.devices.changing()
        snapshot = self.loop.snapshot([self.new_parameters, self.proposer.curve])
        back = WayBack(snapshot, self._timing.state(), len(self.history))
        if self.probation:
            self.probation.remember(self.history, self.lineage)
        failed = self._attempt(reason)
        applied = [record.index for record in self.lineage.records[first:] if record.success]
        if failed is not None:
            back.take()
            for index in applied:
                self.lineage.take_back(index, failed)
            applied = []
            self.proposer.policy.forget()
        if self.probation:
            self.probation.begin(applied, self.proposer.ahead)
        if applied and self._back is not None:  # no step was made since the one before: they stand or fall together
            self._records = self._records + applied
        elif applied:
            self._back, self._records = back, applied
        news, records = self.proposer.news(self._run), self.lineage.records[first:]
        if not records and not self.proposer.ahead and self._stopping():  # broken off: a resumed run makes it anew
            self.proposer.policy.load_state(policy)
            self._timing.due, news = reason, []
        self.events.emit(*news, *(MutationTried(self._run, record) for record in records))
        return records

    def _attempt(self, reason: str) -> str | None:
        """Makes attempts; returns why everything has to go back, where memory ran out after a change."""
        try:
            self.proposer.attempt(reason, self.history)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            logger.warning("Memory ran out where the training followed the mutation: %s", error)
            return "Memory ran out where the run was to follow the mutation: taken back."
        return None

    def _survive(self, error: Exception) -> bool:
        """Goes back to before a mutation that a step has failed after; False where there is none to blame."""
        if self._back is None or not self.loop.devices.survives(error):
            return False
        if self.probation is not None and isinstance(error, NonFiniteLossError):
            return self._carry_out(self.probation.condemn())
        first = self.probation is None or self.loop.step == self.probation.began
        when = "in the first step after the mutation" if first else "while the mutation was on probation"
        what = "Memory ran out" if out_of_memory(error) else one_line(error)
        logger.warning("%s %s: %s", what, when, error)
        traceback.clear_frames(error.__traceback__)  # they hold what the step had computed
        self._go_back()
        records = [self.lineage.take_back(index, f"{what} {when}: taken back.") for index in self._records]
        self.events.emit(*(MutationTried(self._run, record) for record in records))
        return True

    def _carry_out(self, verdict: Verdict | None) -> bool:
        """Keeps what was on probation, or goes back; says whether it went back."""
        if verdict is None or self.probation is None:
            return False
        records = [self.lineage.judge(index, verdict) for index in self.probation.records]
        if verdict.kept:
            self.probation.begin([])
            self._back = None
        else:
            self._go_back()
        self.events.emit(
            *(MutationTried(self._run, each) for each in records), VerdictGiven(self._run, verdict, records)
        )
        return not verdict.kept

    def _go_back(self) -> None:
        """Puts everything back to before the mutation, but for the policy, which has had its turn."""
        back, self._back = self._back, None
        if back is None:
            return
        self.loop.devices.changing()
        back.take()
        del self.history[back.epochs :]
        self._timing.load_state(back.timing)
        self.proposer.policy.forget()
        if self.probation:
            self.probation.begin([])

    def end_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Adds the line of an epoch, or of the part of one that ends a run, to the history, and tells of it.

        Args:
            metrics: What was measured.
        """
        loop, monitor = self.loop, self.loop.monitor
        known = {"epoch": loop.epoch, "step": loop.step, "progress": loop.progress}
        line, earlier = {**known, "params": count_parameters(self.model), **metrics}, best_value(self.history, monitor)
        self.history.append(line)
        told: list[Event] = [EpochEnded(self._run, line)]
        if last_is_best(self.history, monitor):
            value = line[monitor.metric]
            told.append(BestImproved(self._run, monitor.metric, value, None if earlier is None else earlier[1]))
        self.events.emit(*told)

    def _stopping(self) -> bool:
        return self._stop_asked if self._told_to_stop is None else self._told_to_stop()

    def decisions(self) -> dict[str, Any]:
        """Returns what schedule and policy have to remember, as JSON values."""
        return {**self._timing.state(), **self.proposer.state()}

    def load_decisions(self, state: Mapping[str, Any], moved: bool = False) -> None:
        """Takes up what `decisions` returned; the budget may have `moved` since.

        Raises:
            CheckpointError: If it is of another schedule or another policy.
        """
        self._timing.load_state(state)
        self.proposer.load_state(state, moved)

    def state(self, keep: bool = False) -> dict[str, Any]:
        """Returns what a training that is taken up again needs, as plain values and tensors.

        Model and optimizers are not in it: `evolve.save` keeps those.

        Args:
            keep: Whether a mutation on probation counts as kept in a training that is taken up from here.

        Raises:
            EvolveError: While a mutation is on probation, as the way back is in memory alone; not with `keep`.
        """
        if self.testing and not keep:
            raise EvolveError("A mutation is on probation, and its way back cannot be saved. Save after its verdict.")
        return {
            **self.decisions(),
            "loop": self.loop.counts(),
            "history": [dict(line) for line in self.history],
            "records": [record.model_dump_json() for record in self.lineage],
            "new_parameters": self.new_parameters.state_dict(),
            "callbacks": self.events.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned, once the model's records are replayed and its weights are loaded.

        Raises:
            CheckpointError: If it is of another schedule or policy, is damaged, or the model is not the one that its
                records lead to.
        """
        records = saved_records(state, self.model)
        self.load_decisions(state)
        self.loop.take_counts(state["loop"])
        self.history[:] = [dict(line) for line in state["history"]]
        self.lineage.records[:] = records
        self.new_parameters.load_state_dict(state["new_parameters"])
        self.events.load_state(state["callbacks"])
        self._back, self._records = None, []
        if self.probation:  # that of what was trained before
            self.probation.begin([])
