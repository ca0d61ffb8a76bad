"""What is evaluated next, over the whole of a search: the algorithm's children, longer training, the best few again.

Knows no torch, nor where anything is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evolve.errors import EvolveError
from evolve.population.algorithms.base import Algorithm
from evolve.population.halving import Halving
from evolve.population.individual import Individual, Proposal
from evolve.population.objectives import front, preferred

_VAIN = 200  # times in a row that nothing new was found, after which the space is taken to be searched through


@dataclass(frozen=True)
class Job:
    """Something to be evaluated.

    Attributes:
        individual: Who.
        proposal: What was proposed.
        seed: Of all that its evaluation draws.
        rung: How often its training will have been made longer.
    """

    individual: Individual
    proposal: Proposal
    seed: int
    rung: int = 0


@dataclass
class Planner:
    """Decides what is evaluated next.

    Args:
        algorithm: Proposes children.
        seed: Of the evaluations.
        halving: Which children are trained longer; None for none.
        again: Share of the budget, at its end, in which the best few are evaluated again.
        best: How many they are at first; with several objectives all of the front are, if those are more.

    Attributes:
        gone: Ids of those whose weights are deleted: whatever becomes of the others, they are no longer among the best.
    """

    algorithm: Algorithm
    seed: int = 0
    halving: Halving | None = None
    again: float = 0.15
    best: int = 8
    individuals: dict[int, Individual] = field(default_factory=dict)
    out: set[int] = field(default_factory=set)
    finalists: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    in_vain: int = 0
    _keys: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.halving and self.algorithm.trains_on:
            raise EvolveError(
                f"'{self.algorithm.name}' has its individuals trained on by itself, so that successive halving has "
                "nothing to decide. Leave out halving, or take another algorithm."
            )

    @property
    def exhausted(self) -> bool:
        """Whether nothing new was found in a long time."""
        return self.in_vain >= _VAIN

    def next(self, progress: float) -> Job | None:
        """Returns what to evaluate next; None before what is out has come back. Where nothing is out, that is the end.

        Args:
            progress: Which part of the budget is spent, what is out included.
        """
        if progress >= 1 or self.exhausted:
            return None
        if self.again and progress >= 1 - self.again:
            return self._final((1 - progress) / self.again)
        self.finalists = []  # some are left where the budget was raised
        if self.algorithm.space.rooted and not self._root_done:
            return None if self.individuals else self._begin(Proposal(why="the model that all grow out of"))
        if self.halving and (promoted := self.halving.promote(self.out)) is not None:
            why = f"among the best 1 in {self.halving.factor} of rung {self.individuals[promoted].rung}"
            return self._once_more(Proposal(again=promoted, why=why), longer=True)
        proposal = self._proposal()
        if proposal is None:
            return None
        return self._begin(proposal) if proposal.again is None else self._once_more(proposal)

    def made(self, individual: Individual) -> int | None:
        """Takes note of the structure of one that was made.

        Returns:
            Who has the same structure and was evaluated, has failed or is out; None where nobody has.
        """
        first = self._keys.setdefault(individual.key, individual.id)
        self._note(individual)
        return None if first == individual.id else first

    def tell(self, individual: Individual) -> None:
        """Takes note of what came of a job: its individual, with its values or why it has none."""
        first = individual.evaluations <= 1
        self.out.discard(individual.id)
        self.individuals[individual.id] = individual
        self.in_vain = 0 if individual.values else self.in_vain + 1
        self._note(individual)
        if first and individual.values:
            parent = self.individuals.get(individual.parents[0]) if individual.parents else None
            self.algorithm.rates.learn(individual, parent)
        if self.halving:
            self.halving.tell(individual)
        self.algorithm.tell(individual)

    def living(self) -> set[int]:
        """Returns the ids of those whose weights may be needed."""
        promoted = self.halving.waiting() if self.halving else set()
        parents = {parent for each in self.out for parent in self.individuals[each].parents}
        return {*self.algorithm.living(), *self.out, *parents, *promoted, *self.finalists, *self.top()}

    def top(self) -> list[int]:
        """Returns the ids of the best few: with several objectives the front, all of it, then those that come next.

        With several, these are the next fronts, and of the last one who stands alone, so that there are some of every
        kind. With one objective finalists come first: of who was evaluated once the best was lucky as well.
        """
        done = [each for each in self.individuals.values() if each.values and each.id not in self.gone]
        if done and len(done[0].values or ()) > 1:
            return preferred(done)[: max(self.best, len(front(done)))]
        ranked = [each.id for each in sorted(done, key=lambda each: (-each.value, each.id))]
        return sorted(ranked, key=lambda each: each not in self.finalists)[: self.best]

    def state(self) -> dict[str, Any]:
        """Returns what proposing has moved, as JSON values."""
        return {"algorithm": self.algorithm.state(), "finalists": self.finalists}

    def resume(self, told: Iterable[Individual], out: Iterable[Job], state: Mapping[str, Any]) -> None:
        """Stands where a search stood that was interrupted.

        Args:
            told: What `tell` was given, in that order.
            out: Jobs that were begun and not told of, in the order in which they were.
            state: What `state` returned after the last job was begun.
        """
        for individual in told:
            self.tell(individual)
        for job in out:
            self.out.add(job.individual.id)
            if job.proposal.again is None:
                self.individuals[job.individual.id] = job.individual
                self._note(job.individual)
        self.algorithm.load_state(state["algorithm"])
        self.finalists = list(state["finalists"])

    def _note(self, individual: Individual) -> None:
        if individual.key:
            self._keys.setdefault(individual.key, individual.id)
        self.algorithm.remember(individual)

    def _proposal(self) -> Proposal | None:
        """Asks the algorithm; again and again where it finds nothing new and nothing is out that could change that."""
        for _ in range(_VAIN):
            before = self.algorithm.state()
            proposal = self.algorithm.ask()
            if proposal is not None:
                return proposal
            if self.out:
                self.algorithm.load_state(before)  # how often it is asked in vain is a matter of time
                return None
        self.in_vain = _VAIN
        return None

    @property
    def _root_done(self) -> bool:
        return bool(self.individuals) and 0 not in self.out

    def _begin(self, proposal: Proposal) -> Job:
        individual = Individual(
            id=len(self.individuals), parents=proposal.parents, edits=proposal.edits, code=proposal.code
        )
        if proposal.code is not None:
            individual.key = self.algorithm.space.key(proposal.code) or ""
        self.individuals[individual.id] = individual
        self.out.add(individual.id)
        self._note(individual)
        return Job(individual, proposal, self._seed(individual))

    def _once_more(self, proposal: Proposal, longer: bool = False) -> Job:
        individual = self.individuals[proposal.again if proposal.again is not None else -1]
        self.out.add(individual.id)
        return Job(individual, proposal, self._seed(individual), individual.rung + longer)

    def _final(self, left: float) -> Job | None:
        """Who of the finalists was evaluated least often; they are settled when all children have come back.

        With one objective the race narrows: only as many of them, the best by now, stay in it as the share that is left
        of its evaluations, so that these go to the closest rivals (Audibert et al. 2010, "Best Arm Identification").
        """
        chosen = self.finalists or self.top()
        if not any(self.individuals[each].evaluations == 0 for each in self.out):
            self.finalists = chosen
        free = [self.individuals[each] for each in chosen if each not in self.out and self.individuals[each].values]
        if not free:
            return None
        if len(free[0].values or ()) == 1:
            free = sorted(free, key=lambda each: (-each.value, each.id))[: math.ceil(left * len(chosen))]
        least = min(free, key=lambda each: (each.evaluations, -each.value, each.id))
        return self._once_more(Proposal(again=least.id, last=True, why="one of the best, evaluated again"))

    def _seed(self, individual: Individual) -> int:
        return (self.seed * 1_000_003 + individual.id * 1_009 + individual.evaluations) % 2**31


def updated(individual: Individual, values: Sequence[float], rung: int, averaged: bool) -> Individual:
    """Returns an individual after an evaluation.

    Args:
        individual: As it was.
        values: What was found now.
        rung: How often its training has been made longer by now.
        averaged: Whether the mean of all evaluations counts, instead of the last one.
    """
    count = individual.evaluations
    if averaged and individual.values is not None:
        values = [(old * count + new) / (count + 1) for old, new in zip(individual.values, values, strict=True)]
    return replace(individual, values=tuple(map(float, values)), evaluations=count + 1, rung=rung, failure="")


def finite(values: Sequence[float]) -> bool:
    """Whether values can be compared: none of them is NaN or infinite."""
    return all(map(math.isfinite, values))
