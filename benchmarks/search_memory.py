"""Whether a search grows in memory: its process after so many children, among sleepers and among networks.

python benchmarks/search_memory.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from search_runs import sleeping_search

import evolve
from evolve.population.events import Evaluated, SearchEvent

NETWORKS = 300  # children that are networks


def resident() -> float:
    """Returns the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


class Watch:
    """Notes memory and CPU time as children come back.

    Args:
        at: After how many.
    """

    def __init__(self, at: list[int]) -> None:
        self._at = at
        self._begun = time.process_time()

    def __call__(self, event: SearchEvent) -> None:
        """Takes in an event."""
        if isinstance(event, Evaluated) and event.status == "done" and event.search.evaluations in self._at:
            spent = time.process_time() - self._begun
            print(f"  {event.search.evaluations:>6,} children  {resident():7.1f} MiB  {spent:7.1f} s of CPU")


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--children", type=int, default=5000, help="Of the search among sleepers.")
    children = parser.parse_args().children
    with tempfile.TemporaryDirectory() as folder:
        print("Sleepers that do not sleep: what the search itself takes.")
        watch = Watch([children // 10, *range(children // 5, children + 1, children // 5)])
        sleeping_search(Path(folder) / "sleepers", children, [watch], seconds=0.0).run()
        print("Networks, trained for two steps each, in the process of the search.")
        evolve.search(
            {"name": "mlp", "options": {"in_features": 64, "hidden": [16, 16], "num_classes": 10}},
            "digits",
            operators=["widen", {"name": "narrow", "options": {"factor": 0.5}}, "deepen"],
            limits={"params": 20_000},
            budget=NETWORKS,
            training=evolve.TrainingConfig(steps=2, device="cpu"),
            output=Path(folder) / "networks",
            callbacks=[Watch(list(range(NETWORKS // 6, NETWORKS + 1, NETWORKS // 6)))],
        )


if __name__ == "__main__":
    main()
