"""The topology space of NATS-Bench as a search space, looked up in a table: 15,625 cells of six edges.

Dong et al. 2021, "NATS-Bench: Benchmarking NAS Algorithms for Architecture Topology and Size". The table is a CSV file
with the test accuracies after 200 epochs; see `--data` of `nas_table.py`. `evolve search` takes the space by its import
path, `nats_space:NatsSpace`.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, Literal

from pydantic import NonNegativeFloat

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.jobs import Blobs, Evaluator, Json, Setup
from evolve.population.space import Space, spaces
from evolve.registry import TypedOptions

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")
COLUMNS = {
    "cifar10": "CIFAR10TestAccuracy200Epochs",
    "cifar100": "CIFAR100TestAccuracy200Epochs",
    "imagenet16": "ImageNetTestAccuracy200Epochs",
}
Code = tuple[int, ...]
_PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))  # edges on the ways from input to output
_WORKING = [each for each in OPERATIONS if each not in ("none", "skip_connect")]
# What can be met on a way; nothing where it is broken.
_MET = [(), *((*found, "output") for length in range(4) for found in product(_WORKING, repeat=length))]


@cache
def table(path: str, column: str) -> dict[Code, float]:
    """Returns the accuracy of every cell, by the numbers of its operations."""
    with open(path, newline="", encoding="utf-8") as file:
        return {code_of(row["ArchitectureString"]): float(row[COLUMNS[column]]) for row in csv.DictReader(file)}


def code_of(text: str) -> Code:
    """Returns the numbers of the operations in `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, in the order of `EDGES`."""
    nodes = [node.strip("|").split("|") for node in text.split("+")]
    return tuple(OPERATIONS.index(edge.split("~")[0]) for edges in nodes for edge in edges)


@cache
def canonical(code: Code) -> str:
    """Returns the function of a cell: sums sorted, skips left out, and all that only ever sees zeros."""
    edges = iter(code)
    nodes = [["0"]]  # of each the terms of its sum
    for node in range(1, 4):
        terms: list[str] = []
        for source in range(node):
            operation = OPERATIONS[next(edges)]
            if operation == "skip_connect":
                terms += nodes[source]
            elif operation != "none" and nodes[source]:
                terms.append(f"({'+'.join(nodes[source])})@{operation}")
        nodes.append(sorted(terms))
    return "+".join(nodes[-1])


@spaces.register("nats_bench")
class NatsSpace(Space):
    """Six edges, each with one of five operations; an edit puts another one on an edge."""

    class Options(TypedOptions):
        """What is looked up.

        Attributes:
            data: The CSV file.
            table: Whose accuracies.
            noise: Standard deviation, in percent, of what a training adds to the accuracy in the table.
        """

        data: str
        table: Literal["cifar10", "cifar100", "imagenet16"] = "cifar10"
        noise: NonNegativeFloat = 0.0

    def draw(self, chance: random.Random) -> Proposal:
        """Returns any cell."""
        return Proposal(code=[chance.randrange(len(OPERATIONS)) for _ in EDGES], why="random")

    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns every other operation for every edge."""
        return _edits(tuple(individual.code))

    def code(self, code: Any, edits: Sequence[Edit]) -> Any:
        """Returns the code with other operations in it."""
        found = list(code)
        for operation, edge in edits:
            found[EDGES.index(edge)] = OPERATIONS.index(operation)
        return found

    def key(self, code: Any) -> str:
        """Returns the function of the cell."""
        return canonical(tuple(code))

    def features(self, code: Any) -> list[float]:
        """Returns for every edge which operation it has, one-hot, and how often each path leads through the cell.

        A path is what is met on the way from input to output (the path encoding of White et al. 2021, BANANAS), here
        without the skips, which do nothing: cells of the same function are alike in it.
        """
        return _features(tuple(code))

    def descriptors(self, code: Any) -> list[float]:
        """Returns how many convolutions and how many skips there are."""
        names = [OPERATIONS[each] for each in code]
        return [float(sum("conv" in name for name in names)), float(names.count("skip_connect"))]

    def cross(self, one: Individual, other: Individual, chance: random.Random) -> Proposal:
        """Returns a cell that has each edge of one of the two."""
        return Proposal(
            (one.id, other.id), code=[chance.choice(pair) for pair in zip(one.code, other.code, strict=True)]
        )

    def accuracy(self, code: Any) -> float:
        """Returns what the table says, in percent."""
        return table(self.options.data, self.options.table)[tuple(code)]

    def evaluator(self, setup: Setup) -> Evaluator:
        """Returns what looks cells up."""
        return NatsEvaluator(self)


@cache
def _edits(code: Code) -> list[Edit]:
    return [
        Edit(operation, edge)
        for edge, now in zip(EDGES, code, strict=True)
        for number, operation in enumerate(OPERATIONS)
        if number != now
    ]


@cache
def _features(code: Code) -> list[float]:
    one_hot = [float(number == each) for each in code for number in range(len(OPERATIONS))]
    paths = Counter(tuple(OPERATIONS[code[edge]] for edge in path) for path in _PATHS)
    met = Counter[tuple[str, ...]]()
    for path, count in paths.items():
        met[() if "none" in path else (*(each for each in path if each != "skip_connect"), "output")] += count
    return one_hot + [float(met[each]) for each in _MET]


class NatsEvaluator(Evaluator):
    """Looks cells up; `val_accuracy` is in 0...1 and has the noise of a training, `true_accuracy` has none."""

    def __init__(self, space: NatsSpace) -> None:
        self.space = space
        self.code: list[int] = []

    def make(self, order: Json, blobs: Blobs) -> Json:
        """Makes a cell of its code, or of its parent by edits."""
        self.code = order["genome"] if order.get("again") else order["code"]
        if self.code is None:
            self.code = self.space.code(order["genome"], [Edit(*each) for each in order["edits"]])
        return {"genome": self.code, "key": self.space.key(self.code), "code": self.code, "metrics": {}}

    def train(self, order: Json, blobs: Blobs) -> Json:
        """Looks the cell up."""
        found = self.space.accuracy(self.code)
        seen = found + random.Random(order["seed"]).gauss(0, self.space.options.noise)
        return {"metrics": {"val_accuracy": seen / 100, "true_accuracy": found / 100}, "weights": [], "steps": 1}
