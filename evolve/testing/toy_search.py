"""A search without training: several workers that come back in any order, some with nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace

from evolve.population.algorithms.base import Algorithm
from evolve.population.individual import Edit, Individual
from evolve.population.planner import Job, Planner
from evolve.testing.toy_spaces import ToySpace


class ToySearch:
    """Runs an algorithm on a toy space, and looks at what it does.

    Args:
        make: Makes the algorithm, as new, for a space and a seed.
        space: What is searched.
        seed: Of the algorithm, of the order in which workers come back, and of who fails.
        workers: How many evaluations are out at a time.
        failing: Share of those that fail.
        objectives: 1, or 2 with the cost.
        learning: Whether a genome is worth the more the longer it was trained, inherited training included.

    Attributes:
        begun: Proposals as JSON values, in the order in which they were made.
    """

    def __init__(
        self,
        make: Callable[[ToySpace, int], Algorithm],
        space: ToySpace,
        seed: int = 0,
        *,
        workers: int = 1,
        failing: float = 0.0,
        objectives: int = 1,
        learning: bool = False,
    ) -> None:
        self.make, self.space, self.seed = make, space, seed
        self.workers, self.failing, self.objectives, self.learning = workers, failing, objectives, learning
        self.planner = Planner(make(space, seed), seed, again=0)
        self.begun: list[str] = []
        self._jobs: list[Job] = []
        self._told: list[Individual] = []
        self._state = self.planner.state()
        self._trained: dict[int, int] = {}
        self._weights: set[int] = set()  # ids of those whose weights were never collected
        self._keys: set[str] = set()
        self._made: set[str] = set()

    @property
    def best(self) -> float:
        """The highest fitness that was found."""
        return max((each.value for each in self._told), default=float("-inf"))

    def run(self, evaluations: int) -> ToySearch:
        """Goes on until so many evaluations have come back, or nothing new is found."""
        while len(self._told) < evaluations:
            while len(self._jobs) < self.workers and self._begin():
                pass
            if not self._jobs:
                break
            self._finish(self._chance("who").randrange(len(self._jobs)))
        return self

    def interrupted(self) -> ToySearch:
        """Returns a search that was made anew of what an archive holds of this one: no more than JSON values."""
        again = ToySearch(
            self.make,
            self.space,
            self.seed,
            workers=self.workers,
            failing=self.failing,
            objectives=self.objectives,
            learning=self.learning,
        )
        state = json.loads(json.dumps(self._state))
        again._told = [_read(each) for each in self._told]
        again._jobs = [replace(job, individual=_read(job.individual)) for job in self._jobs]
        again.planner.resume([_read(each) for each in self._told], again._jobs, state)
        again.begun, again._state, again._trained = [*self.begun], state, {**self._trained}
        again._weights, again._keys, again._made = {*self._weights}, {*self._keys}, {*self._made}
        return again

    def _begin(self) -> bool:
        """Sends a worker out; False where there is nothing to do."""
        job = self.planner.next(0)
        if job is None:
            return False
        self._check(job)
        self._state = self.planner.state()
        assert json.loads(json.dumps(self._state)) == self._state, "its state holds more than JSON values"
        self._jobs.append(job)
        self.begun.append(json.dumps([job.individual.id, job.seed, asdict(job.proposal)]))
        return True

    def _check(self, job: Job) -> None:
        proposal = job.proposal
        needed = {*proposal.parents} if proposal.again is None else {proposal.again}
        assert needed <= self._weights, f"it wants the weights of {needed - self._weights}, which did not live"
        if proposal.again is not None:
            assert all(other.individual.id != proposal.again for other in self._jobs), "it trains on one that is out"
            return
        key = self.space.key(proposal.code) if proposal.code is not None else None
        made = json.dumps([proposal.parents, proposal.edits])
        new = key not in self._keys if key else not proposal.parents or made not in self._made
        assert new or proposal.known, f"it proposed again what it had proposed before: {proposal}"
        self._keys.add(key or "")
        self._made.add(made)

    def _finish(self, number: int) -> None:
        job = self._jobs.pop(number)
        individual = replace(job.individual)
        if job.proposal.again is None and individual.code is None:
            individual.code = {}  # the root
        individual.key = self.space.built_key(individual.code)
        twin = self.planner.made(individual)
        if twin is not None and not job.proposal.known and job.proposal.again is None:
            individual.failure = f"the same as {twin}"
        elif individual.id > 0 and self._chance("fails").random() < self.failing:
            individual = replace(individual, values=None, failure="failed")
        else:
            parent = individual.id if job.proposal.again is not None else (*individual.parents, -1)[0]
            self._trained[individual.id] = self._trained.get(parent, 0) + 1
            individual = replace(individual, values=self._values(individual), evaluations=individual.evaluations + 1)
            self._weights.add(individual.id)
        self.planner.tell(individual)
        self._told.append(individual)
        self._weights &= {*self.planner.algorithm.living(), *self.planner.out, *self._parents_out()}

    def _parents_out(self) -> set[int]:
        return {parent for job in self._jobs for parent in job.individual.parents}

    def _values(self, individual: Individual) -> tuple[float, ...]:
        fitness = self.space.fitness(individual.code)
        if self.learning:
            fitness -= 10 * 0.8 ** self._trained[individual.id]
        return (fitness, -self.space.cost(individual.code))[: self.objectives]

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what} {len(self._told)}")


def _read(individual: Individual) -> Individual:
    """What comes of an individual that is written as JSON and read again."""
    found = json.loads(json.dumps(asdict(individual)))
    edits = tuple(Edit(*each) for each in found.pop("edits"))
    values = found.pop("values")
    return Individual(
        **{**found, "parents": tuple(found["parents"])}, edits=edits, values=None if values is None else tuple(values)
    )
