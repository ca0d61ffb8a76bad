"""Two search spaces of numbers alone, on which search algorithms are tested: one is rooted, one is not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.jobs import Evaluator, Setup
from evolve.population.space import Space

_LETTERS = "abcd"
_LENGTH = 8
_GAINS = [[random.Random(place * 8 + letter).random() for letter in range(4)] for place in range(_LENGTH)]
_PAIRS = [[random.Random(1000 + one * 4 + other).random() for other in range(4)] for one in range(4)]


class ToySpace(Space):
    """A space whose genomes have a fitness that is known at once."""

    def fitness(self, code: Any) -> float:
        """Returns what is sought, more is better."""
        raise NotImplementedError

    def cost(self, code: Any) -> float:
        """Returns a second objective, less is better."""
        raise NotImplementedError

    def built_key(self, code: Any) -> str:
        """Returns the key of what was built."""
        raise NotImplementedError

    def evaluator(self, setup: Setup) -> Evaluator:
        """There is none: no worker is needed for what is known at once."""
        raise NotImplementedError


class Letters(ToySpace):
    """Words of eight letters, with keys that are known beforehand: the order of the first two letters is all one."""

    def draw(self, chance: random.Random) -> Proposal:
        """Returns a random word."""
        return Proposal(code="".join(chance.choice(_LETTERS) for _ in range(_LENGTH)))

    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns every other letter for every place."""
        word = individual.code
        return [Edit(letter, str(place)) for place in range(_LENGTH) for letter in _LETTERS if letter != word[place]]

    def code(self, code: Any, edits: Sequence[Edit]) -> Any:
        """Returns the word with other letters in it."""
        word = list(code)
        for letter, place in edits:
            word[int(place)] = letter
        return "".join(word)

    def key(self, code: Any) -> str:
        """Returns the word with its first two letters in order."""
        return "".join(sorted(code[:2])) + str(code[2:])

    def built_key(self, code: Any) -> str:
        """Returns the key."""
        return self.key(code)

    def features(self, code: Any) -> list[float]:
        """Returns the letters, one-hot."""
        return [float(letter == each) for each in code for letter in _LETTERS]

    def descriptors(self, code: Any) -> list[float]:
        """Returns how often the first two letters occur."""
        return [float(code.count(letter)) for letter in _LETTERS[:2]]

    def cross(self, one: Individual, other: Individual, chance: random.Random) -> Proposal:
        """Returns each letter of one of the two."""
        return Proposal((one.id, other.id), code="".join(map(chance.choice, zip(one.code, other.code, strict=True))))

    def fitness(self, code: Any) -> float:
        """Returns a sum over places, and over neighbours."""
        word = [_LETTERS.index(letter) for letter in self.key(code)]
        pairs = sum(_PAIRS[one][other] for one, other in pairwise(word[2:]))
        return sum(gains[letter] for gains, letter in zip(_GAINS, word, strict=True)) + pairs

    def cost(self, code: Any) -> float:
        """Returns how many letters are not the first."""
        return float(_LENGTH - code.count(_LETTERS[0]))


class Growing(ToySpace):
    """Counts of growths, as networks have them: all grow out of individual 0, and a key is known once one is built."""

    rooted: ClassVar[bool] = True
    shake: ClassVar[Edit | None] = Edit("shake")
    _goal: ClassVar[Mapping[str, int]] = {"widen a": 3, "widen b": 1, "deepen a": 0, "deepen b": 2, "deepen c": 4}

    def draw(self, chance: random.Random) -> Proposal:
        """Returns a few random growths of the root."""
        edits = tuple(chance.choice(self._edits()) for _ in range(chance.randint(1, 8)))
        return Proposal((0,), edits, self.code({}, edits))

    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns every growth."""
        return self._edits()

    def code(self, code: Any, edits: Sequence[Edit]) -> Any:
        """Returns how often each growth was made."""
        counts = dict(code)
        for operator, where in edits:
            counts[f"{operator} {where}"] = counts.get(f"{operator} {where}", 0) + 1
        return counts

    def built_key(self, code: Any) -> str:
        """Returns the counts: the order of growths makes no difference."""
        return str(sorted(code.items()))

    def features(self, code: Any) -> list[float]:
        """Returns the counts, and a 1."""
        return [*(float(code.get(name, 0)) for name in self._goal), 1.0]

    def cross(self, one: Individual, other: Individual, chance: random.Random) -> Proposal | None:
        """Returns the first with some of the growths that only the second has."""
        more = [
            Edit(*name.split(" "))
            for name in self._goal
            for _ in range(other.code.get(name, 0) - one.code.get(name, 0))
            if chance.random() < 0.5
        ]
        return Proposal((one.id, other.id), tuple(more), self.code(one.code, more)) if more else None

    def fitness(self, code: Any) -> float:
        """Returns how near the counts are to where it is best."""
        return -float(sum((code.get(name, 0) - count) ** 2 for name, count in self._goal.items()))

    def cost(self, code: Any) -> float:
        """Returns how many growths there were."""
        return float(sum(code.values()))

    def _edits(self) -> list[Edit]:
        return [Edit(*name.split(" ")) for name in self._goal]
