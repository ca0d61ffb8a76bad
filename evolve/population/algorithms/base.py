"""What a search algorithm is: it is asked what to evaluate next, and told what came of it. Knows no torch."""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import Registered, Registry, TypedOptions

_DRAWS = 30  # at something new, before it is given up
_MOST_EDITS = 4


class Algorithm(Registered, ABC):
    """Decides what is evaluated next.

    `ask` and `tell` may come in any order, as workers finish: what was asked for first may be told last, and several
    may be out at a time. `remember` is called with whatever was asked for and taken up, before anything else is.

    A search that was interrupted is told again what had finished, in that order, and reminded of what was out; then
    `load_state` gets what `state` returned last. For that to lead to where it stood, `tell` draws nothing at random and
    looks at nothing that `ask` changes; and what `ask` changes is named in `moved` and changed by nothing else.

    Args:
        space: What is searched.
        seed: Of all that is drawn.
        rates: How often each kind of edit is drawn; the same for all if None.
        **options: Its own.

    Attributes:
        name: Registered name.
        Options: Typed options.
        multi_objective: Whether it looks at more than the first objective.
        trains_on: Whether it has individuals trained on by itself, by `Proposal.again`.
        moved: Names of attributes that `ask` changes, besides the random numbers; their values are JSON values.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions
    multi_objective: ClassVar[bool] = False
    trains_on: ClassVar[bool] = False
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
        """Returns what to evaluate next; None while it waits for what is out, or where it finds nothing new."""

    @abstractmethod
    def tell(self, individual: Individual) -> None:
        """Takes note of an individual that was evaluated, evaluated once more, or that has failed.

        One that failed has no values; so has one whose structure turned out to be known, or that could not be made. In
        a rooted space individual 0 is told before anything is asked, without having been asked for.
        """

    @abstractmethod
    def living(self) -> Collection[int]:
        """Returns the ids of those that may still become parents or be trained on: the weights of others are deleted.

        Who has left never comes back, unless it is told again. The root of a rooted space is always among them, since
        random genomes grow out of it.
        """

    def remember(self, individual: Individual) -> None:
        """Takes note of what was proposed, so that it is not proposed again: at once, and when its key is known."""
        if individual.key:
            self._keys.add(individual.key)
        if individual.parents:
            self._tried.add((individual.parents, self._structural(individual.edits)))

    def state(self) -> dict[str, Any]:
        """Returns what `ask` has moved, as JSON values."""
        version, numbers, gauss = self.chance.getstate()
        moved = {name: copy.deepcopy(getattr(self, name)) for name in self.moved}
        return {"chance": [version, list(numbers), gauss], **moved}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned, once it has been told everything again."""
        version, numbers, gauss = state["chance"]
        self.chance.setstate((version, tuple(numbers), gauss))
        for name in self.moved:
            setattr(self, name, copy.deepcopy(state[name]))

    def fresh(self) -> Proposal | None:
        """Returns a random genome that was not proposed before; None where none is found."""
        for _ in range(_DRAWS):
            proposal = self.space.draw(self.chance)
            if not self.known(proposal):
                return proposal
        return None

    def child(self, parent: Individual, why: str) -> Proposal | None:
        """Returns a child of a parent that was not proposed before; None where none is found.

        Args:
            parent: The parent.
            why: Why it was chosen.
        """
        return self.varied(Proposal((parent.id,), (), parent.code, why=why))

    def crossed(self, one: Individual, other: Individual, why: str) -> Proposal | None:
        """Returns a mutated child of two that was not proposed before; of the first alone where they cannot be crossed.

        Args:
            one: The first parent.
            other: The second parent.
            why: Why they were chosen.
        """
        both = self.space.cross(one, other, self.chance) if one.id != other.id else None
        return self.varied(replace(both, why=f"{why}, crossed")) if both else self.child(one, why)

    def varied(self, start: Proposal) -> Proposal | None:
        """Returns a proposal with more edits, by as few as lead to something that was not proposed before.

        All but the last edit are drawn as they come, the last one of those that lead to something new.
        """
        for count in range(_MOST_EDITS):
            for _ in range(_DRAWS if count else 1):
                middle = self.mutated(start, count)
                new = self.neighbours(middle) if middle else []
                if new:
                    return self.drawn(new)
        return None

    def drawn(self, proposals: Collection[Proposal]) -> Proposal:
        """Draws one of several proposals by the rate of its last edit."""
        by_edit = {each.edits[-1]: each for each in proposals}
        return by_edit[self.rates.draw(list(by_edit), self.chance)]

    def neighbours(self, start: Proposal) -> list[Proposal]:
        """Returns everything that one more edit leads to and that was not proposed before."""
        found = []
        for edit in self.space.edits(Individual(-1, code=start.code)):
            edits, code = (*start.edits, edit), self.space.code(start.code, [edit])
            if not self._known(start.parents, edits, code):
                found.append(Proposal(start.parents, edits, code, known=start.known, why=start.why))
        return found

    def mutated(self, start: Proposal, count: int) -> Proposal | None:
        """Returns a proposal with some more edits, drawn by their rates; None where there are none."""
        for _ in range(count):
            possible = self.space.edits(Individual(-1, code=start.code))
            if not possible:
                return None
            edit = self.rates.draw(possible, self.chance)
            start = replace(start, edits=(*start.edits, edit), code=self.space.code(start.code, [edit]))
        return start

    def known(self, proposal: Proposal) -> bool:
        """Whether this has been proposed before, or leads to a structure that has been."""
        return self._known(proposal.parents, proposal.edits, proposal.code)

    def _known(self, parents: tuple[int, ...], edits: tuple[Edit, ...], code: Any) -> bool:
        key = self.space.key(code) if code is not None else None
        if key is not None:
            return key in self._keys
        return bool(parents) and (parents, self._structural(edits)) in self._tried

    def _structural(self, edits: Collection[Edit]) -> tuple[Edit, ...]:
        return tuple(edit for edit in edits if edit != self.space.shake)


algorithms: Registry[type[Algorithm]] = Registry("search algorithm", "evolve.algorithms")
