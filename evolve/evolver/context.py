"""What a policy can ask about a running model: scores, places, children. Worked out when it is asked for, and once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evolve.config.options import Monitor
from evolve.errors import NotApplicable
from evolve.evolver.children import Child, ChildTrainer
from evolve.evolver.loop import Loop
from evolve.evolver.loss_curve import LossCurve
from evolve.lineage import Record
from evolve.policies import Candidate, Promise, Race, Racer
from evolve.runtime.generators import preserved_rng
from evolve.scores import Evidence, addition, collect, scores
from evolve.structure.analysis import analyse
from evolve.structure.depth import depth_of, depths
from evolve.structure.inputs import as_inputs

logger = logging.getLogger(__name__)


@dataclass
class RunContext:
    """The policy context of a run; see `evolve.policies.PolicyContext`.

    Attributes:
        loop: The training.
        records: Every mutation attempted so far.
        history: One mapping of metrics for each finished epoch.
        trainer: Makes children and trains them.
        tried: Candidates that were refused since the mutation was due.
        curve: The training losses.
        ahead: Steps that the model has made as a copy of itself.
    """

    loop: Loop
    records: Sequence[Record]
    history: Sequence[Mapping[str, Any]]
    trainer: ChildTrainer
    tried: list[Candidate] = field(default_factory=list)
    _evidence: dict[int, Evidence] = field(default_factory=dict)
    _promises: dict[tuple[Any, ...], Promise] = field(default_factory=dict)
    curve: LossCurve = field(default_factory=LossCurve)
    ahead: int = 0
    _best: tuple[Candidate, Child] | None = None
    _own: Child | None = None

    @property
    def monitor(self) -> Monitor:
        """The metric that decisions look at."""
        return self.loop.monitor

    def promise(self, candidate: Candidate, score: str, batches: int) -> Promise:
        """Returns what a score says of a candidate, from the next `batches` of the training data; nothing is built."""
        key = candidate.entry, candidate.site, score, batches
        if key not in self._promises:
            self._promises[key] = self._promise(candidate, score, batches)
        return self._promises[key]

    def _promise(self, candidate: Candidate, score: str, batches: int) -> Promise:
        evidence = self._look(batches)
        try:
            with preserved_rng(self.loop.step):
                added = addition(evidence, candidate.operator, candidate.site or "", dict(candidate.options))
                gain = scores.get(score)().value(added)
        except NotApplicable as error:
            logger.debug("%s at '%s' has no score: %s", candidate.operator, candidate.site, error)
            return Promise(None, note=str(error))
        return Promise(gain, added.params, added.flops)

    def _look(self, batches: int) -> Evidence:
        """Runs the model once on the next batches of the training data."""
        if batches not in self._evidence:
            inputs, loss = self.loop.score_batch(batches)
            self._evidence[batches] = collect(self.loop.model, inputs, loss, self.loop.example)
        return self._evidence[batches]

    def depth(self, candidate: Candidate) -> float | None:
        """Returns how deep in the model a site lies, in [0, 1), by the order in which modules are called."""
        return depth_of(candidate.site or "", self._depths)

    @cached_property
    def _depths(self) -> dict[str, float]:
        return depths(analyse(self.loop.model, as_inputs(self.loop.model, self.loop.example)))

    def child(self, candidate: Candidate | None, steps: int) -> float | None:
        """Trains a mutated copy of the model a little and returns its monitored metric; None if it came to nothing.

        Of the mutated ones the best is kept, for memory's sake that one alone.
        """
        child = self.trainer.raised(candidate, steps)
        if child is None:
            return None
        if candidate is not None and (self._best is None or self.monitor.better(child.score, self._best[1].score)):
            self._best = candidate, child
        return child.score

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.loop.step

    @property
    def progress(self) -> float:
        """Which part of the budget is spent."""
        return self.loop.progress

    @property
    def in_seconds(self) -> bool:
        """Whether the budget is in seconds."""
        return self.loop.in_seconds

    @property
    def epoch_steps(self) -> float | None:
        """Optimizer steps of an epoch; None while that is not known."""
        last = self.history[-1] if self.history else {}
        counted = last["step"] / last["epoch"] if last.get("epoch") and last.get("step") else None
        return self.loop.epoch_steps or counted

    @property
    def held_until(self) -> float:
        """Part of the budget up to which the learning rate is held."""
        return self.loop.held_until

    def losses(self, since: float) -> list[tuple[float, float, float]]:
        """Returns the training losses since a step: steps of each stretch, mean logarithm of the step, mean loss."""
        return self.curve.points(since)

    def race(self, candidate: Candidate, steps: int, most: float) -> Race | None:
        """Trains a copy of the model and a mutated one on the next batches; None if it came to nothing."""
        raced = self.trainer.raced(candidate, steps, most)
        if raced is None:
            return None
        self._own, child = raced
        self._best = candidate, child
        return Race(*(_racer(one) for one in raced))

    def keep_own(self) -> None:
        """Lets the run go on from the copy that was not mutated in the last race, behind its batches."""
        if self._own is not None:
            self.trainer.adopt(self._own)
            self.ahead = self._own.steps

    def seed_of(self, candidate: Candidate, otherwise: int) -> int:
        """Returns the seed that a candidate's child was made with, or another one where it has none."""
        child = self._child_of(candidate)
        return otherwise if child is None else child.seed

    def adopt(self, candidate: Candidate) -> int:
        """Gives the mutated model what the candidate's child has learned; returns in how many steps, 0 without one."""
        child = self._child_of(candidate)
        if child is None:
            return 0
        self.trainer.adopt(child)
        return child.steps

    def _child_of(self, candidate: Candidate) -> Child | None:
        return self._best[1] if self._best is not None and self._best[0] == candidate else None


def _racer(child: Child) -> Racer:
    losses, price = child.stretch or ((), 0.0)
    return Racer(losses, price, child.score)
