"""How good the pick of each search algorithm is, by the tables of NATS-Bench.

Each algorithm gets 150 evaluations through the same `Planner` that `evolve search` has, one worker, and the pick is the
individual that the planner has for the best. Noise-free, an evaluation gives the accuracy in the table, and nothing is
evaluated again. With noise it adds what one training does; then the last part of the budget goes to the best few, as by
default. Printed is the accuracy in the table of the pick, mean and standard error over seeds, and how often it is the
best cell of all.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nats_space import COLUMNS, NatsSpace, canonical, code_of, table
from timing import write_json

from evolve.population.algorithms import algorithms
from evolve.population.planner import Planner, updated

NOISE = {"cifar10": 0.17, "cifar100": 0.31, "imagenet16": 0.40}  # of one training, in percent
EVALUATIONS = 150
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "regularized, as published": ("regularized", {"as_published": True}),
    "regularized": ("regularized", {}),
    "local_search": ("local_search", {}),
    "mu_plus_lambda": ("mu_plus_lambda", {}),
    "mu_plus_lambda, crossover 0.5": ("mu_plus_lambda", {"crossover": 0.5}),
    "nsga2": ("nsga2", {}),
    "map_elites": ("map_elites", {}),
    "elitist (the default)": ("elitist", {}),
    "surrogate": ("surrogate", {}),
}


def search(arm: str, data: str, name: str, noise: float, again: float, best: int, seed: int) -> float:
    """Returns the accuracy in the table, in percent, of what a search picks."""
    space = NatsSpace(data=data, table=name, noise=noise)
    algorithm, options = ARMS[arm]
    planner = Planner(algorithms.get(algorithm)(space, seed, **options), seed, again=again, best=best)
    evaluator = space.evaluator(None)  # type: ignore[arg-type]  # it needs nothing of a set-up
    for evaluation in range(EVALUATIONS):
        job = planner.next(evaluation / EVALUATIONS)
        if job is None:
            break
        individual = job.individual
        order = {"code": individual.code, "genome": individual.code, "again": True, "seed": job.seed}
        evaluator.make(order, None)  # type: ignore[arg-type]  # no weights
        seen = evaluator.train(order, None)["metrics"]["val_accuracy"]  # type: ignore[arg-type]
        planner.tell(updated(individual, [seen], job.rung, averaged=True))
    return space.accuracy(planner.individuals[planner.top()[0]].code)


def check_classes(data: str) -> None:
    """Holds the classes of isomorphic cells against those of the file: each of these lies in one of ours."""
    with open(data, newline="", encoding="utf-8") as file:
        rows = [(row["UniqueString"], canonical(code_of(row["ArchitectureString"]))) for row in csv.DictReader(file)]
    ours = defaultdict(set)
    for theirs, own in rows:
        ours[theirs].add(own)
    split = sum(len(each) > 1 for each in ours.values())
    print(
        f"{len(rows)} cells, {len(ours)} classes by the file, {len({own for _, own in rows})} functions, {split} split"
    )


def figures(picks: list[float], best: float) -> dict[str, float]:
    """Returns mean and standard error of what was picked, and which share of the searches has found the best cell."""
    error = statistics.stdev(picks) / len(picks) ** 0.5
    return {"mean": statistics.mean(picks), "error": error, "best": sum(each == best for each in picks) / len(picks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the CSV file of NATS-Bench")
    parser.add_argument("--seeds", type=int, default=500, help="searches of each algorithm (%(default)s)")
    parser.add_argument("--tables", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--only", default="", help="a part of the names of the algorithms")
    parser.add_argument("--noisy", action="store_true", help="leave out the searches without noise")
    parser.add_argument("--again", type=float, default=Planner.again, help="share for the best few (%(default)s)")
    parser.add_argument("--best", type=int, default=Planner.best, help="how many they are (%(default)s)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args()
    check_classes(chosen.data)
    cases: list[dict[str, Any]] = []
    with ProcessPoolExecutor(chosen.processes) as pool:
        for arm in (each for each in ARMS if chosen.only in each):
            for noisy in (True,) if chosen.noisy else (False, True):
                started = time.perf_counter()
                cells = []
                for name in chosen.tables:
                    noise, again = (NOISE[name], chosen.again) if noisy else (0.0, 0.0)
                    run = partial(search, arm, chosen.data, name, noise, again, chosen.best)
                    picks = list(pool.map(run, range(chosen.seeds), chunksize=5))
                    cells.append(figures(picks, max(table(chosen.data, name).values())))
                cases.append({"arm": arm, "noisy": noisy, "seeds": chosen.seeds, "tables": cells})
                text = " / ".join("{mean:.2f} ± {error:.2f} ({best:.0%})".format(**each) for each in cells)
                took = time.perf_counter() - started
                print(f"{arm:32} {'noisy' if noisy else 'noise-free':10} {text}  {took:.0f} s", flush=True)
    write_json(chosen.json, "nas_table", cases)


if __name__ == "__main__":
    main()
