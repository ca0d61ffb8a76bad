"""How often each kind of edit is drawn: equally, or the more often the more it has paid."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evolve.population.individual import Edit, Individual

_LEAST = 0.25  # of an equal share: no operator dies out, since what pays changes as models grow
_FORGET = 0.9


class Rates:
    """How often edits are drawn, by what they have paid: "probability matching" as in Thierens 2005.

    An edit has paid where the child is better than its parent. Each operator has a running share of children that
    paid, and is drawn in proportion to it, but never less often than a quarter of an equal share.

    Args:
        adaptive: Whether the rates change at all.
    """

    def __init__(self, adaptive: bool = False) -> None:
        self.adaptive = adaptive
        self._paid: dict[str, float] = {}

    def draw(self, edits: Sequence[Edit], chance: random.Random) -> Edit:
        """Draws an operator by its rate, and one of its places with equal chances."""
        operators = list(dict.fromkeys(edit.operator for edit in edits))
        shares = self.shares(operators)
        operator = chance.choices(operators, [shares[name] for name in operators])[0]
        return chance.choice([edit for edit in edits if edit.operator == operator])

    def shares(self, operators: Sequence[str]) -> dict[str, float]:
        """Returns how often each operator is drawn; they add up to 1."""
        if not self.adaptive:
            return dict.fromkeys(operators, 1 / len(operators))
        paid = {name: self._paid.get(name, 0.5) for name in operators}
        total = sum(paid.values()) or 1.0
        least = _LEAST / len(operators)
        return {name: least + (1 - _LEAST) * value / total for name, value in paid.items()}

    def learn(self, child: Individual, parent: Individual | None) -> None:
        """Takes note of whether the edits that made a child have paid."""
        if parent is None or not child.edits:
            return
        paid = float(child.value > parent.value)
        for edit in child.edits:
            before = self._paid.get(edit.operator, 0.5)
            self._paid[edit.operator] = _FORGET * before + (1 - _FORGET) * paid
