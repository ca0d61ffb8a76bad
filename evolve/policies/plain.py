"""Policies that look at nothing but the candidates."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from evolve.errors import did_you_mean
from evolve.policies.base import Candidate, Choice, Policy, PolicyContext, policies, untried
from evolve.registry import TypedOptions


@policies.register("round_robin")
class RoundRobin(Policy):
    """The configured operators in turn, each at its sites in turn."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._next_entry = 0
        self._tries: dict[str, int] = {}

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns the next operator's next site, leaving out what was refused just now."""
        entries = sorted({candidate.entry for candidate in untried(candidates, context)})
        if not entries:
            return None
        entry = next((e for e in entries if e >= self._next_entry), entries[0])
        places = [candidate for candidate in candidates if candidate.entry == entry]
        tries = self._tries.get(str(entry), 0)
        while places[tries % len(places)] in context.tried:
            tries += 1
        self._next_entry, self._tries[str(entry)] = entry + 1, tries + 1
        return Choice(places[tries % len(places)])

    def state(self) -> dict[str, Any]:
        """Returns whose turn it is."""
        return {"next_entry": self._next_entry, "tries": self._tries}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up whose turn it is."""
        self._next_entry, self._tries = state["next_entry"], dict(state["tries"])


@policies.register("random")
class Random(Policy):
    """A random operator at a random one of its sites."""

    class Options(TypedOptions):
        """Seed of the choice."""

        seed: NonNegativeInt = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._random = random.Random(self.options.seed)

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns a candidate that was not refused just now, every operator equally likely."""
        candidates = untried(candidates, context)
        if not candidates:
            return None
        entry = self._random.choice(sorted({c.entry for c in candidates}))
        return Choice(self._random.choice([c for c in candidates if c.entry == entry]))

    def state(self) -> dict[str, Any]:
        """Returns the generator's state."""
        version, internal, gauss = self._random.getstate()
        return {"random": [version, list(internal), gauss]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the generator's state."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))


class FixedChoice(TypedOptions):
    """One entry of a fixed list: an operator of `evolution.operators`, and a site of its own if given."""

    operator: str
    site: str | None = None


@policies.register("fixed")
class Fixed(Policy):
    """A given list of operators and sites, one at each try; nothing after its end."""

    class Options(TypedOptions):
        """The list."""

        steps: Annotated[list[FixedChoice], Field(min_length=1)]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._position = 0

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns the next of the list."""
        if self._position >= len(self.options.steps):
            return None
        step = self.options.steps[self._position]
        self._position += 1
        same = [c for c in candidates if c.operator == step.operator]
        if not same or step.site is None:
            return Choice(same[0] if same else Candidate(step.operator, step.site))
        named = Candidate(step.operator, step.site, same[0].options)
        return Choice(next((c for c in same if c.site == step.site), named))

    def faults(self, operators: Collection[str]) -> list[tuple[tuple[str | int, ...], str]]:
        """Returns the steps whose operator is not among `operators`."""
        return [
            (
                ("steps", index, "operator"),
                f"'{step.operator}' is not in evolution.operators.{did_you_mean(step.operator, operators)}",
            )
            for index, step in enumerate(self.options.steps)
            if step.operator not in operators
        ]

    def state(self) -> dict[str, Any]:
        """Returns the position in the list."""
        return {"position": self._position}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the position in the list."""
        self._position = state["position"]
