"""What the benchmarks share: clocks, ratios with their spread, and what is known of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def seconds(action: Callable[[], Any]) -> float:
    """Returns the wall-clock seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


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
