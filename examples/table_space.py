"""A search space of your own: networks that are looked up in a table instead of trained; see docs/search.md.

evolve search examples/table_space.yaml
"""

import json
import random
from collections.abc import Sequence
from typing import Any

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.jobs import Blobs, Evaluator, Json, Setup
from evolve.population.space import Space

CHOICES = {"depth": (1, 2, 3, 4, 5), "width": (8, 16, 32, 64, 128), "kernel": (3, 5, 7)}


def look_up(depth: int, width: int, kernel: int) -> dict[str, float]:
    """Stands in for a table of your own measurements; the figures are made up."""
    return {
        "accuracy": 0.9 - 0.3 / depth - 1.5 / width - 0.01 * abs(kernel - 5) - 0.0002 * depth * width,
        "params": float(depth * (width * kernel) ** 2),
    }


class TableSpace(Space):
    """Codes are such as `{"depth": 2, "width": 16, "kernel": 3}`; an edit puts another value in one place."""

    def draw(self, chance: random.Random) -> Proposal:
        """Returns any entry of the table."""
        return Proposal(code={name: chance.choice(values) for name, values in CHOICES.items()})

    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns every other value for every place."""
        code = individual.code
        return [Edit(str(each), name) for name, values in CHOICES.items() for each in values if each != code[name]]

    def code(self, code: Any, edits: Sequence[Edit]) -> Any:
        """Returns the code with other values in it."""
        return {**code, **{name: int(value) for value, name in edits}}

    def key(self, code: Any) -> str:
        """Returns what equal structures have in common: here the code itself."""
        return json.dumps(code, sort_keys=True)

    def features(self, code: Any) -> list[float]:
        """Returns where each value stands among its choices, for algorithms that compare genomes."""
        return [values.index(code[name]) / len(values) for name, values in CHOICES.items()]

    def cross(self, one: Individual, other: Individual, chance: random.Random) -> Proposal:
        """Returns each value of one of the two."""
        return Proposal(
            (one.id, other.id), code={name: chance.choice((one.code, other.code))[name] for name in CHOICES}
        )

    def evaluator(self, setup: Setup) -> Evaluator:
        """Returns what looks entries up, in a worker."""
        return TableEvaluator(self)


class TableEvaluator(Evaluator):
    """Looks up what was made last."""

    def __init__(self, space: TableSpace) -> None:
        self._space = space
        self._found: dict[str, float] = {}

    def make(self, order: Json, blobs: Blobs) -> Json:
        """Takes the code that was proposed; for one that is evaluated again, its genome."""
        code = order["genome"] if order["again"] else order["code"]
        self._found = look_up(**code)
        return {
            "genome": code,
            "key": self._space.key(code),
            "code": code,
            "metrics": {"params": self._found["params"]},
        }

    def train(self, order: Json, blobs: Blobs) -> Json:
        """Returns the accuracy; nothing is trained, so that there are no weights and no steps."""
        return {"metrics": {"accuracy": self._found["accuracy"]}, "weights": [], "steps": 0}
