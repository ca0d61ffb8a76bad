"""How busy a search keeps its workers, and what a child costs beside its training.

python benchmarks/search_workers.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from search_runs import sleeping_search

from evolve.population.archive import Archive
from evolve.population.folder import ARCHIVE

OVERHEAD = {
    "in_process": {"name": "in_process"},
    "processes, 2 workers": {"name": "processes", "options": {"workers": 2}},
    "ray, 2 actors": {"name": "ray", "options": {"workers": 2, "cpus": 0.5}},
}


def utilisation(folder: Path, algorithm: str, budget: int, actors: int, seconds: float) -> None:
    """Prints which part of their time the workers train, between the moment all have begun and the last proposal."""
    executor = {"name": "ray", "options": {"workers": actors, "cpus": 0.03}}
    sizes = {"population": 50, "children": actors} if algorithm == "mu_plus_lambda" else {"population": 50}
    settings = {"algorithm": {"name": algorithm, "options": sizes}, "executor": executor, "seconds": seconds}
    begun = time.perf_counter()
    sleeping_search(folder, budget, **settings).run()
    took = time.perf_counter() - begun
    with Archive.read(folder / ARCHIVE) as archive:
        rows = [row for row, _ in archive.finished()]
    proposed = sorted(row.proposed_at for row in rows)
    first, last = proposed[actors], proposed[-1]
    slept = [(row.finished_at - row.metrics["slept"], row.finished_at) for row in rows if row.finished_at]
    busy = sum(max(0.0, min(end, last) - max(start, first)) for start, end in slept)
    longest = max(end - start for start, end in slept)
    print(
        f"{algorithm}, {actors} Ray actors, {len(rows)} children of {seconds:g} s (longest {longest:.0f} s): "
        f"{busy / actors / (last - first):.1%} busy over {last - first:.0f} s; {took:.0f} s with start and end",
        flush=True,
    )


def overhead(folder: Path, name: str, budget: int, size: int) -> None:
    """Prints what a child takes that does not train at all, over all workers together."""
    sleeping_search(folder, budget, executor=OVERHEAD[name], size=size).run()
    with Archive.read(folder / ARCHIVE) as archive:
        ends = [row.finished_at for row, _ in archive.finished()]
    first, last = ends[50], ends[-1]  # the first ones warm up
    print(f"{name}, {size:,} bytes of weights: {(last - first) / (len(ends) - 51) * 1e3:.2f} ms a child", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--children", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="mean of a child")
    parser.add_argument("--only", default="", help="utilisation or overhead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if given.only in ("", "overhead"):
            for number, name in enumerate(OVERHEAD):
                for size in (100, 4_000_000):
                    overhead(Path(made) / f"{number}-{size}", name, 500 if size < 1e6 else 200, size)
        if given.only in ("", "utilisation"):
            for algorithm, share in (("elitist", 1.0), ("mu_plus_lambda", 0.3)):
                count = int(given.children * share)
                utilisation(Path(made) / algorithm, algorithm, count, given.actors, given.seconds)
