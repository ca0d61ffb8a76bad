"""What a search algorithm is: it is asked what to evaluate next, and told what came of it. Knows no torch."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import Registered, Registry, TypedOptions

_DRAWS = 30  # at edits that lead somewhere new, before one more edit is allowed
_MOST_EDITS = 4


class Algorithm(Registered, ABC):
    """Decides what is evaluated next.

    `ask` and `tell` may come in any order, as workers finish: what was asked for first may be told last, and several
    may be out at a time. `tell` draws nothing at random, so that an algorithm that is told again what is in the archive
    stands where it stood; of `state` it needs only what `ask` moved.

    Args:
        space: What is searched.
        seed: Of all that is drawn.
        rates: How often each kind of edit is drawn; the same for all if None.
        **options: Its own.

    Attributes:
        name: Registered name.
        Options: Typed options.
        multi_objective: Whether it looks at more than the first objective.
        moved: Names of attributes that `ask` changes, besides the random numbers; their values are JSON values.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions
    multi_objective: ClassVar[bool] = False
    moved: ClassVar[tuple[str, ...]] = ()

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        self.options: Any = self.Options.read(options)
        self.space = space
        self.chance = random.Random(seed)
        self.rates = rates or Rates()
        self._keys: set[str] = set()
        self._tried: set[tuple[tuple[int, ...], tuple[Edit, ...]]] = set()

    @abstractmethod
    def ask(self) -> Proposal | None:
        """Returns what to evaluate next, or None while it waits for what is out."""

    @abstractmethod
    def tell(self, individual: Individual) -> None:
        """Takes note of an individual that was evaluated, once more, or that has failed.

        One that failed has no values; so has one whose structure turned out to be known, or that could not be made.
        """

    @abstractmethod
    def living(self) -> Collection[int]:
        """Returns the ids of those that may still become parents or be trained on: their weights are kept."""

    def remember(self, individual: Individual) -> None:
        """Takes note of what was proposed, so that it is not proposed again: at once, and when its key is known."""
        if individual.key:
            self._keys.add(individual.key)
        if individual.parents:
            self._tried.add((individual.parents, individual.edits))

    def state(self) -> dict[str, Any]:
        """Returns what `ask` has moved, as JSON values."""
        version, numbers, gauss = self.chance.getstate()
        return {"chance": [version, list(numbers), gauss], **{name: getattr(self, name) for name in self.moved}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned, once it has been told everything again."""
        version, numbers, gauss = state["chance"]
        self.chance.setstate((version, tuple(numbers), gauss))
        for name in self.moved:
            setattr(self, name, state[name])

    def fresh(self) -> Proposal:
        """Returns a random genome that was not proposed before, where one is found."""
        proposal = self.space.draw(self.chance)
        for _ in range(_DRAWS):
            if not self._known(proposal):
                break
            proposal = self.space.draw(self.chance)
        return proposal

    def child(self, parent: Individual, why: str, edits: int = 1) -> Proposal | None:
        """Returns a child of a parent that was not proposed before, by as few edits as that takes.

        Args:
            parent: The parent.
            why: Why it was chosen.
            edits: The fewest edits.
        """
        for count in range(edits, max(edits, _MOST_EDITS) + 1):
            for _ in range(_DRAWS):
                proposal = self.mutated(Proposal((parent.id,), (), parent.code, why=why), count)
                if proposal is not None and not self._known(proposal):
                    return proposal
        return None

    def mutated(self, proposal: Proposal, count: int = 1) -> Proposal | None:
        """Returns a proposal with more edits, drawn by their rates; None where there is none."""
        edits: list[Edit] = list(proposal.edits)
        code = proposal.code
        for _ in range(count):
            possible = self.space.edits(Individual(-1, code=code))
            if not possible:
                return None
            edits.append(self.rates.draw(possible, self.chance))
            code = self.space.code(code, edits[-1:])
        return Proposal(proposal.parents, tuple(edits), code, known=proposal.known, why=proposal.why)

    def _known(self, proposal: Proposal) -> bool:
        """Whether this has been proposed before, or leads to a structure that has been."""
        key = self.space.key(proposal.code) if proposal.code is not None else None
        if key is not None:
            return key in self._keys
        return bool(proposal.parents) and (proposal.parents, proposal.edits) in self._tried


algorithms: Registry[type[Algorithm]] = Registry("search algorithm", "evolve.algorithms")
