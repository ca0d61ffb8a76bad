"""What the benchmarks share: clocks, ratios with their spread, and what is known of the machine."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Timer:
    """Wall-clock and CPU seconds of this process since it was made.

    On a machine that is shared with other work the CPU time of one thread is the steadier of the two.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Took:
        """Returns the seconds so far."""
        return Took(time.perf_counter() - self._wall, time.process_time() - self._cpu)


class Took(NamedTuple):
    """Seconds that something took."""

    wall: float
    cpu: float


def seconds(action: Callable[[], Any]) -> Took:
    """Returns the seconds that `action` takes."""
    timer = Timer()
    action()
    return timer.read()


def taking_turns(arms: dict[str, Callable[[], Took]], repetitions: int) -> list[dict[str, Took]]:
    """Runs every arm in every round, each time another one first; the first round warms up and is left out."""
    names, rounds = list(arms), []
    gc.collect()
    gc.freeze()  # what is there already need not be looked through before each arm
    try:
        for repetition in range(repetitions + 1):
            turn = repetition % len(names)
            took = {}
            for name in names[turn:] + names[:turn]:
                gc.collect()
                took[name] = arms[name]()
            rounds.append(took)
    finally:
        gc.unfreeze()
    return rounds[1:]


def ratios(pairs: Sequence[tuple[Took, Took]]) -> dict[str, dict[str, float]]:
    """Returns the spread of the ratios within each pair, by wall clock and by CPU time."""
    return {clock: spread([getattr(a, clock) / getattr(b, clock) for a, b in pairs]) for clock in Took._fields}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, 10th and 90th percentile and the count."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1], "n": len(values)}


def told(figures: dict[str, float]) -> str:
    """Returns `median [p10 .. p90]`."""
    return f"{figures['median']:.3f} [{figures['p10']:.3f} .. {figures['p90']:.3f}]"


def machine() -> dict[str, Any]:
    """Returns what a reader needs to place the figures."""
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def arguments(description: str, repetitions: int) -> argparse.ArgumentParser:
    """Returns a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repetitions", type=int, default=repetitions, help="paired repetitions (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    parser.add_argument("--only", default="", help="run only the cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


def write_json(path: Path | None, benchmark: str, cases: list[dict[str, Any]]) -> None:
    """Writes the figures, if a path was given."""
    if path is not None:
        found = {"benchmark": benchmark, "machine": machine(), "cases": cases}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
