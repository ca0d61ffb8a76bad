"""A search: jobs to workers, answers into the archive and to the algorithm, until the budget is spent."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evolve.errors import EvolveError
from evolve.population.archive import Archive
from evolve.population.blobs import BlobFolder
from evolve.population.breeding import Breeder
from evolve.population.collecting import Collector
from evolve.population.config import PopulationConfig
from evolve.population.events import (
    Evaluated,
    SearchBegun,
    SearchCallback,
    SearchEnded,
    SearchEvent,
    Status,
    WorkerLost,
)
from evolve.population.executors import Executor
from evolve.population.individual import Edit, Individual
from evolve.population.jobs import Answer, Json, Setup
from evolve.population.objectives import Objective
from evolve.population.orders import Work, order_of
from evolve.population.planner import Planner, finite, updated
from evolve.population.space import Space
from evolve.training.interrupt import Interrupt
from evolve.training.lock import RunLock

logger = logging.getLogger(__name__)

_STOPS = (
    "the search stops. What its workers were at is begun anew when it goes on: evolve resume. A second one stops it at "
    "once, which loses nothing either."
)
_COLLECT_EVERY = 10  # evaluations, after which weights that nobody needs are deleted


@dataclass
class Search:
    """An evolutionary search.

    Args:
        config: How the population is led.
        objectives: What is sought.
        space: What is searched.
        planner: Decides what is evaluated next.
        executor: Where it is.
        archive: What is known of all individuals.
        blobs: Their weights.
        setup: What a worker needs to know.
        breeder: Makes and trains networks in this process; None where other genomes are searched.
        callbacks: Told of each event.
    """

    config: PopulationConfig
    objectives: list[Objective]
    space: Space
    planner: Planner
    executor: Executor
    archive: Archive
    blobs: BlobFolder
    setup: Setup
    breeder: Breeder | None = None
    callbacks: Sequence[SearchCallback] = ()
    evaluations: int = 0
    steps: int = 0
    seconds: float = 0.0
    _begun: float = 0.0
    _stop: bool = False
    _interrupt: Interrupt = field(default_factory=lambda: Interrupt(_STOPS))
    _work: dict[int, Work] = field(default_factory=dict)
    _waiting: deque[Work] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._collector = Collector(self.archive, self.blobs, self.planner)

    @property
    def folder(self) -> Path:
        """Where the search lies."""
        return self.archive.path.parent

    @property
    def elapsed(self) -> float:
        """Seconds that the search has taken, those before it was resumed included."""
        return self.seconds + (time.perf_counter() - self._begun if self._begun else 0.0)

    @property
    def progress(self) -> float:
        """Which part of the budget is spent, what is out included."""
        budget = self.config.budget
        out = len(self._work) + len(self._waiting)
        spent = {
            "evaluations": self.evaluations + out,
            "seconds": self.elapsed,
            "steps": self.steps + out * self.steps / max(self.evaluations, 1),
        }
        return min(1.0, spent[budget.unit] / budget.amount)

    @property
    def busy(self) -> int:
        """Workers that are at work."""
        return len(self._work)

    @property
    def signal(self) -> int | None:
        """The signal that stopped the search; None for none."""
        return self._interrupt.signal

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or nothing new is found in the space."""
        return not self._work and not self._waiting and (self.progress >= 1 or self.planner.exhausted)

    def stop(self) -> None:
        """Asks the search to end; what is out is begun anew when it goes on. For callbacks and other threads."""
        self._stop = True

    def run(self) -> bool:
        """Searches until the budget is spent, or it is told to stop.

        On a first signal (Ctrl-C) nothing more is begun, and what is out is begun anew after `evolve resume`.

        Returns:
            Whether it is finished.

        Raises:
            EvolveError: If workers cannot be started, or nothing more can be written.
        """
        with ExitStack() as stack:
            stack.enter_context(RunLock(self.folder))
            self._take_up()
            self.archive.put("finished", False)
            stack.enter_context(self._interrupt)
            stack.enter_context(self.executor)
            self._begun = time.perf_counter()
            self.executor.start(self.setup, self.blobs.path)
            self._tell(SearchBegun(self, self.evaluations))
            while not self._stopping:
                self._hand_out()
                if not self._work:
                    break
                for answer in self.executor.wait(1.0):
                    self._receive(answer)
        self.seconds, self._begun = self.elapsed, 0.0
        self.archive.put("seconds", self.seconds)
        finished = self.finished
        self.archive.put("finished", finished)
        self._tell(SearchEnded(self, finished))
        return finished

    @property
    def _stopping(self) -> bool:
        return self._stop or self._interrupt.signal is not None

    def _hand_out(self) -> None:
        """Gives each idle worker something to do."""
        for worker in self.executor.idle():
            work = self._waiting.popleft() if self._waiting else self._next()
            if work is None:
                return
            self._work[worker] = work
            self.executor.call(worker, "make", work.order)

    def _next(self) -> Work | None:
        job = self.planner.next(self.progress)
        if job is None:
            return None
        return Work(
            job, self.archive.propose(job, self._state()), order_of(job, self.archive, self.planner, self.config)
        )

    def _receive(self, answer: Answer) -> None:
        work = self._work.pop(answer.worker)
        if answer.content is None:
            self._lost(work, answer)
        elif "stuck" in answer.content:
            raise EvolveError(str(answer.content["stuck"]))  # the child stays out, and is begun again by a resume
        elif "error" in answer.content:
            self._over(work, answer, "failed", str(answer.content["error"]))
        elif work.made is None:
            self._made(work, answer)
        elif "failed" in answer.content:
            self._over(work, answer, "failed", str(answer.content["failed"]))
        else:
            self._done(work, answer, answer.content)

    def _lost(self, work: Work, answer: Answer) -> None:
        """Begins what a lost worker was at once more, until it has been tried often enough."""
        logger.warning("Worker %d was lost: %s", answer.worker, answer.lost)
        self.archive.lost(work.evaluation, answer.worker, answer.lost)
        self._tell(WorkerLost(self, answer.worker, answer.lost))
        if work.attempts >= self.config.attempts:
            self._over(work, answer, "failed", f"its worker was lost {work.attempts} times, at last: {answer.lost}")
        else:
            self._waiting.append(Work(work.job, work.evaluation, work.order, work.attempts + 1))

    def _made(self, work: Work, answer: Answer) -> None:
        """Has what was made trained, unless its structure is known."""
        content = answer.content or {}
        if "refused" in content:
            self._over(work, answer, "refused", str(content["refused"]))
            return
        individual, proposal = work.job.individual, work.job.proposal
        if proposal.again is None:
            individual.key = content["key"]
            if "edits" in content:  # of those that were proposed, some may have been refused
                edits = [Edit(*edit) for edit in content["edits"]]
                individual.code = self.space.code(self._code_of_parent(individual), edits)
            other = self.planner.made(individual)
            if other is not None and not proposal.known:
                self._over(work, answer, "duplicate", f"has the structure of individual {other}")
                return
            self.archive.made(individual, content["genome"], content["metrics"])
        work.made, work.seconds = content, answer.seconds
        self._work[answer.worker] = work
        self.executor.call(answer.worker, "train", work.order)

    def _code_of_parent(self, individual: Individual) -> Any:
        return self.planner.individuals[individual.parents[0]].code if individual.parents else None

    def _done(self, work: Work, answer: Answer, content: Json) -> None:
        metrics = {**(work.made or {}).get("metrics", {}), **content["metrics"]}
        lacking = [one.metric for one in self.objectives if one.metric not in metrics]
        if lacking:
            self._over(work, answer, "failed", f"{', '.join(lacking)} not measured; there are {', '.join(metrics)}")
            return
        values = [objective.value(metrics) for objective in self.objectives]
        if not finite(values):
            self._over(work, answer, "failed", f"its values are not finite: {values}")
            return
        before = self.planner.individuals[work.job.individual.id]
        individual = updated(before, values, work.job.rung, averaged=not self.space.trains)
        self._end(work, answer, individual, "done", metrics, content)

    def _over(self, work: Work, answer: Answer, status: Status, why: str) -> None:
        """Ends what came to nothing; one that was evaluated before keeps its values."""
        before = self.planner.individuals[work.job.individual.id]
        individual = replace(before, evaluations=before.evaluations + 1)
        if individual.values is None:
            individual.failure = why
        self._end(work, answer, individual, status, {}, {}, why)
        self._check_root()

    def _check_root(self) -> None:
        """Ends a search whose first model has failed: there is nothing to make children of.

        Raises:
            EvolveError: If it has.
        """
        root = self.planner.individuals.get(0)
        if self.space.rooted and root is not None and root.failure:
            raise EvolveError(f"The first model could not be trained, and all others grow out of it: {root.failure}")

    def _end(
        self,
        work: Work,
        answer: Answer,
        individual: Individual,
        status: Status,
        metrics: Mapping[str, float],
        content: Json,
        why: str = "",
    ) -> None:
        dropped = self.archive.finish(
            work.evaluation,
            individual,
            status,
            metrics=metrics,
            weights=content.get("weights"),
            steps=content.get("steps", 0),
            seconds=(work.seconds, answer.seconds) if work.made else (answer.seconds, 0.0),
            worker=answer.worker,
            why=why,
        )
        self._collector.drop(dropped)
        self._count(status, content.get("steps", 0))
        self.planner.tell(individual)
        self._collect()
        self._tell(Evaluated(self, individual, status, metrics))

    def _count(self, status: str, steps: int) -> None:
        """What could not be made, or is known, costs no evaluation."""
        self.evaluations += status in ("done", "failed")
        self.steps += steps

    def _collect(self) -> None:
        """Deletes weights that nobody needs, by the count: so a search that goes on does it at the same moments."""
        if self.space.trains and self.evaluations % _COLLECT_EVERY == 0:
            self._collector.collect((*self._work.values(), *self._waiting))

    def _take_up(self) -> None:
        """Brings planner and counts to where the archive stands."""
        out = self.archive.out()
        told = []
        for evaluation, individual in self.archive.finished():
            self._count(evaluation.status, evaluation.steps)
            told.append(individual)
        state = self.archive.state()
        self.planner.resume(told, [job for _, job, _ in out], state["planner"] if state else self.planner.state())
        self.seconds = max(self.archive.get("seconds", 0.0), state["seconds"] if state else 0.0)
        if self.space.trains:
            finished = self.planner.individuals.keys() - self.planner.out
            self.planner.gone = {each for each in finished if not self.archive.weights(each)}
        self._check_root()
        self._collect()
        self._collector.collect_all()
        self._waiting.extend(
            Work(job, evaluation, order_of(job, self.archive, self.planner, self.config), attempts)
            for evaluation, job, attempts in out
        )

    def _state(self) -> Json:
        return {"planner": self.planner.state(), "seconds": self.elapsed}

    def _tell(self, event: SearchEvent) -> None:
        for callback in self.callbacks:
            callback(event)
