"""The mutations of a run, each from the moment when it is due until it has passed: its first step, its probation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolve.data import Batches
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.probation import Probation
from evolve.evolver.proposer import Proposer
from evolve.lineage import Record, Verdict
from evolve.schedules import Clock, Schedule
from evolve.training import Batch, StepResult, TrainState, train_step
from evolve.training.snapshot import Snapshot, unless_memory_runs_out

Progress = Mapping[str, Any]  # of a run, as JSON values


class MutationController:
    """Makes mutations when they are due, one at a time, and sees each of them through.

    Attributes:
        round: Makes the attempts.
        probation: Judges what has been made; None where all is kept.

    Args:
        config: When, what and how far to mutate.
        state: What training moves.
        train: Training data.
        val: Held-out data.
        tell: Told each record that is new or has changed.
        stopping: Says whether the run is to stop.
    """

    def __init__(
        self,
        config: EvolutionConfig,
        state: TrainState,
        train: Batches,
        val: Batches,
        tell: Callable[[Record], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.proposer = Proposer(config, state, train, val, stopping)
        self.probation = Probation(config.probation, state, val) if config.probation else None
        self._schedule: Schedule | None = config.schedule.build() if config.schedule else None
        self._state = state
        self._tell, self._stopping = tell, stopping
        self._due: str | None = None  # why a mutation is to be made, as soon as none is on probation
        self._before: Snapshot | None = None  # what there was before a mutation, until a step is made after it
        self._latest: list[int] = []  # the records of that mutation and of what followed it

    def ask(self, clock: Clock) -> None:
        """Asks the schedule whether a mutation is due."""
        if self._schedule is not None:
            reason = self._schedule.due(clock)
            self._due = self._due or reason

    @property
    def waiting(self) -> bool:
        """Whether a mutation is to be made now: not in a run that is to stop, as it would have no way back then."""
        return self._due is not None and not self.testing and not self._stopping()

    @property
    def testing(self) -> bool:
        """Whether a mutation is on probation."""
        return self.probation is not None and bool(self.probation.records)

    def make(self, history: Sequence[Mapping[str, Any]], progress: Callable[[], Progress]) -> None:
        """Makes the mutation that is due.

        Args:
            history: One mapping of metrics for each finished epoch.
            progress: Returns what the run has to take up again if it goes back to before the mutation.
        """
        reason, self._due = self._due or "", None
        lineage = self.proposer.lineage
        before, first, policy = Snapshot(self._state), len(lineage), self.proposer.policy.state()
        if self.probation:
            self.probation.remember(before, progress(), history, lineage)
        when = "where the run was to follow the mutation"
        done = unless_memory_runs_out(before, when, lambda: self.proposer.attempt(reason, history))
        applied = [record.index for record in lineage.records[first:] if record.success]
        if done is None:
            self._take_back(applied, when)
            applied = []
        if self.probation:
            self.probation.begin(applied, self.proposer.ahead)
        if applied:
            self._before, self._latest = before, applied
        elif len(lineage) == first and self._stopping():  # the round was broken off: a resumed run makes it anew
            self.proposer.policy.load_state(policy)
            self._due = reason
        for record in lineage.records[first:]:
            self._tell(record)

    def step(self, batches: Sequence[Batch]) -> StepResult:
        """Makes an optimizer step; where memory runs out in the first one after a mutation, makes it without that.

        Raises:
            NonFiniteLossError: As `train_step`.
        """
        before, self._before = self._before, None
        if before is None:
            return train_step(self._state, batches)
        when = "in the first step after the mutation"
        result = unless_memory_runs_out(before, when, lambda: train_step(self._state, batches))
        if result is not None:
            return result
        for record in self._take_back(self._latest, when):
            self._tell(record)
        if self.probation:
            self.probation.begin([])
        return train_step(self._state, batches)

    def judge(self, finished: bool) -> Progress | None:
        """Judges what is on probation, if it is time; returns what the run has to take up if it has gone back.

        Args:
            finished: Whether the run is at its end.
        """
        return self._carry_out(self.probation.verdict(finished)) if self.probation else None

    def condemn(self) -> Progress | None:
        """Takes back what is on probation, as the loss is no number any more; None where nothing is."""
        return self._carry_out(self.probation.condemn()) if self.probation else None

    def _carry_out(self, verdict: Verdict | None) -> Progress | None:
        if self.probation is None or verdict is None:
            return None
        for index in self.probation.records:
            self._tell(self.proposer.lineage.judge(index, verdict))
        before = self.probation.end(verdict)
        # The policy has had its turn: it goes on, so that the next mutation is another one.
        return None if before is None else {**before, "policy": self.proposer.policy.state()}

    def _take_back(self, applied: list[int], when: str) -> list[Record]:
        """Notes of mutations, by their numbers, that memory ran out and all is as before them."""
        return [self.proposer.lineage.take_back(index, f"Memory ran out {when}: taken back.") for index in applied]

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        schedule = self._schedule.state() if self._schedule else {}
        return {"policy": self.proposer.policy.state(), "schedule": schedule, "due": self._due}

    def load_state(self, state: Progress) -> None:
        """Takes up what `state` returned."""
        self.proposer.policy.load_state(state["policy"])
        if self._schedule is not None:
            self._schedule.load_state(state["schedule"])
        self._due = state["due"]
