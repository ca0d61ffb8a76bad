"""What evolves: individuals, the edits that make them of their parents, and what is to be done with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Edit(NamedTuple):
    """One change of a genome.

    Attributes:
        operator: What is done: the name of a mutation operator, or of what a table has in a place.
        where: The part of the genome that it is done to; "" for any.
    """

    operator: str
    where: str = ""


@dataclass(slots=True)
class Individual:
    """A member of the search, as algorithms see it.

    Its genome and its weights lie in the archive; what is held here is small.

    Attributes:
        id: Counts from 0 in the order in which they were proposed.
        parents: Their ids; none for one that was made from nothing.
        edits: What made it of its first parent.
        code: What the space knows it by, as a small JSON value.
        key: Of its structure: equal for two that are the same up to isomorphism; "" before that is known.
        values: One for each objective, larger is better; None until it is evaluated, and where that failed.
        evaluations: How often it was evaluated.
        rung: How often its training was made longer.
        failure: Why it has no values; "" where it has, or where it is still out.
    """

    id: int
    parents: tuple[int, ...] = ()
    edits: tuple[Edit, ...] = ()
    code: Any = None
    key: str = ""
    values: tuple[float, ...] | None = None
    evaluations: int = 0
    rung: int = 0
    failure: str = ""

    @property
    def value(self) -> float:
        """The first objective; minus infinity where there is none."""
        return self.values[0] if self.values else float("-inf")


@dataclass(frozen=True)
class Proposal:
    """What an algorithm wants to be done next.

    Attributes:
        parents: Ids; the first gives genome and weights, a second one is crossed with it. None: from nothing.
        edits: What is changed, in this order.
        code: What the child will be, where the space knows that beforehand.
        again: The id of an individual to be trained on, instead of a child.
        known: Evaluate it even if its structure was evaluated before.
        last: Whether it is one of the best, at the end of the search.
        why: What decided, for the archive.
    """

    parents: tuple[int, ...] = ()
    edits: tuple[Edit, ...] = ()
    code: Any = None
    again: int | None = None
    known: bool = False
    last: bool = False
    why: str = ""


@dataclass
class Population:
    """Individuals by id, in the order in which they came."""

    members: dict[int, Individual] = field(default_factory=dict)

    def add(self, individual: Individual) -> None:
        """Takes one in, or what is new of one."""
        self.members[individual.id] = individual

    def remove(self, individual: Individual) -> None:
        """Lets one go."""
        self.members.pop(individual.id, None)

    def oldest(self) -> Individual:
        """Returns the one that came first."""
        return next(iter(self.members.values()))

    def best(self) -> Individual:
        """Returns the one with the highest first objective, of equals the one that came first."""
        return max(self.members.values(), key=lambda member: member.value)

    def worst(self) -> Individual:
        """Returns the one with the lowest first objective, of equals the one that came first."""
        return min(self.members.values(), key=lambda member: member.value)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Individual]:
        return iter(self.members.values())
