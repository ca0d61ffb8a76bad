"""What a search loses when workers are killed or hang, and when the search itself is killed again and again.

python benchmarks/search_faults.py
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from search_runs import children_of, lives, sleeping_search

from evolve.population.archive import Archive
from evolve.population.events import Evaluated, SearchEvent
from evolve.population.folder import ARCHIVE

WORKERS = {"name": "processes", "options": {"workers": 4, "timeout": 3.0}}
SECONDS, LONGEST = 0.1, 1.5  # mean of a child, and the most: none is at fault itself for being late
ATTEMPTS = 20  # of a child: by chance one may be hit again and again
PATIENCE = 10.0  # seconds that orphans have to end


def workers(folder: Path, budget: int, kills: int, hangs: int) -> None:
    """Kills and stops worker processes at random moments."""
    faults = ["SIGKILL"] * kills + ["SIGSTOP"] * hangs
    chance = random.Random(0)
    chance.shuffle(faults)
    over = threading.Event()
    sent: Counter[str] = Counter()

    def disturb() -> None:
        while faults and not over.wait(chance.uniform(0.3, 1.0)):
            running = [pid for pid in children_of(os.getpid()) if lives(pid, "ZT")]
            if len(running) == WORKERS["options"]["workers"]:  # none is hit twice
                os.kill(chance.choice(running), getattr(signal, faults[-1]))
                sent[faults.pop()] += 1

    search = sleeping_search(folder, budget, executor=WORKERS, seconds=SECONDS, longest=LONGEST, attempts=ATTEMPTS)
    thread = threading.Thread(target=disturb)
    begun = time.perf_counter()
    thread.start()
    search.run()
    took = time.perf_counter() - begun
    over.set()
    thread.join()
    left = children_of(os.getpid())
    with Archive.read(folder / ARCHIVE) as archive:
        done = Counter(individual.id for evaluation, individual in archive.finished() if evaluation.status == "done")
        print(f"{sent['SIGKILL']} workers killed, {sent['SIGSTOP']} stopped: {len(archive.losses())} losses noticed")
        print(f"  evaluations by status: {archive.counts()}, of a budget of {budget}, in {took:.0f} s")
        print(f"  individuals that are done: {len(done)}, the most often: {max(done.values())} times")
        print(f"  processes left, zombies included: {len(left)}")


def drivers(folder: Path, budget: int, kills: int) -> None:
    """Kills the search itself at random moments, and has it go on."""
    chance = random.Random(0)
    acknowledged: set[int] = set()
    orphans = killed = 0
    finished = False
    while not finished:
        driver = subprocess.Popen(
            [sys.executable, __file__, "--drive", str(folder), "--budget", str(budget)], stdout=subprocess.PIPE
        )
        assert driver.stdout is not None
        acknowledged |= {int(line) for line in driver.stdout.readline().split()}
        running = children_of(driver.pid)
        if killed < kills:
            time.sleep(chance.uniform(0, 1.2))
            driver.kill()
            killed += driver.wait() == -signal.SIGKILL
        acknowledged |= {int(line) for line in driver.stdout.read().split()}
        finished = driver.wait() == 0
        end = time.monotonic() + PATIENCE
        while any(map(lives, running)) and time.monotonic() < end:
            time.sleep(0.05)
        orphans += sum(map(lives, running))
    with Archive.read(folder / ARCHIVE) as archive:
        done = [individual.id for evaluation, individual in archive.finished() if evaluation.status == "done"]
        print(f"search killed {killed} times and resumed")
        print(f"  evaluations by status: {archive.counts()}, of a budget of {budget}")
        print(f"  finished children that it had told of: {len(acknowledged)}, lost: {len(acknowledged - set(done))}")
        print(f"  evaluated twice: {len(done) - len(set(done))}")
        print(f"  workers that outlived a killed search by {PATIENCE:g} s: {orphans}")


def drive(folder: Path, budget: int) -> None:
    """Searches, and tells of each child that is finished."""

    def tell(event: SearchEvent) -> None:
        if isinstance(event, Evaluated) and event.status == "done":
            print(event.individual.id, flush=True)

    search = sleeping_search(
        folder, budget, [tell], executor=WORKERS, seconds=SECONDS, longest=LONGEST, attempts=ATTEMPTS
    )
    if not search.run():
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=800)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--hangs", type=int, default=10)
    parser.add_argument("--resumes", type=int, default=20)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(given.drive, given.budget)
    else:
        with tempfile.TemporaryDirectory() as made:
            # Long enough for all faults: a worker that was stopped while it starts takes half a minute.
            workers(Path(made) / "workers", 3 * given.budget, given.kills, given.hangs)
            drivers(Path(made) / "drivers", given.budget, given.resumes)
