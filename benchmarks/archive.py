"""What it costs to write a child into the archive, as it grows to 100,000.

python benchmarks/archive.py
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from evolve.population.archive import Archive
from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.planner import Job

GENOME = [{"operator": "widen", "site": f"layers.{number}", "options": {"width": 64}} for number in range(30)]
WEIGHTS = 20  # individuals that have some at a time


def write(archive: Archive, id: int, state: object) -> None:
    """Writes all that is written of one child, and lets the weights of an old one go now and then."""
    edits = (Edit("widen", "2"),)
    job = Job(Individual(id, (max(0, id - 1),), edits), Proposal((max(0, id - 1),), edits, why="won a tournament"), id)
    evaluation = archive.propose(job, {"planner": state})
    made = Individual(id, (max(0, id - 1),), edits, {"widen@2": id}, f"{id:064x}")
    archive.made(made, GENOME, {"params": 1e6, "flops": 1e8})
    told = Individual(id, made.parents, edits, made.code, made.key, (0.5,), 1)
    archive.finish(evaluation, told, "done", metrics={"val_accuracy": 0.5}, weights=[f"{id:064x}"], steps=100)
    if id % 10 == 0:
        archive.release(range(id - WEIGHTS, id + 1))


def resident() -> float:
    """Returns MiB of memory that this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--individuals", type=int, default=100_000)
    count = parser.parse_args().individuals
    state = random.Random(0).getstate()
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "archive.sqlite"
        with Archive.create(path, {}) as archive:
            bounds = [0, *(10**power for power in range(2, 9) if 10**power < count), count]
            for first, last in pairwise(bounds):
                begun, cpu = time.perf_counter(), time.process_time()
                for id in range(first, last):
                    write(archive, id, state)
                took = (time.perf_counter() - begun) / (last - first) * 1e3
                busy = (time.process_time() - cpu) / (last - first) * 1e3
                print(
                    f"{first:>7,} .. {last:>7,}: {took:6.2f} ms a child ({busy:.2f} CPU), memory {resident():.0f} MiB",
                    flush=True,
                )
            begun = time.perf_counter()
            told = sum(1 for _ in archive.finished())
            print(f"reading {told:,} again for a resume: {time.perf_counter() - begun:.1f} s")
            begun = time.perf_counter()
            archive.counts()
            print(f"counts for the status: {(time.perf_counter() - begun) * 1e3:.1f} ms")
        print(f"file: {path.stat().st_size / 2**20:.0f} MiB")
