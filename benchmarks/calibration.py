"""How right forecasts are: what evolved runs expected of their training loss, beside what it came to.

Reads the runs that `lm.py`, `growth.py` and `tabular.py` have kept. Of each run those forecasts count after which the
model did not grow again, as what they expected is what was done.

    python benchmarks/calibration.py lm.jsonl growth.jsonl tabular.jsonl --picture calibration.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from family import EVOLVED, IN_SECONDS, Store
from timing import spread, told

from evolve.policies.projection import NORMAL

ZERO = 0.01  # a loss up to this is as good as zero


class Pair(NamedTuple):
    """What was expected, with its standard error, and what came."""

    expected: float
    error: float
    came: float

    @property
    def within(self) -> bool:
        """Whether it lies in the interval of 80 %; one that is as good as zero is right with all that are."""
        low, high = (self.expected + sign * NORMAL * self.error for sign in (-1, 1))
        return low <= self.came <= max(high, ZERO)


def pairs(forecasts: list[dict[str, Any]]) -> list[Pair]:
    """Returns the forecasts of a run that can be compared, beside what they came to."""
    made = [one for one in forecasts if "grows" in one]
    last = max((number for number, one in enumerate(made) if one["grows"]), default=0)
    came = [one["loss"] for one in forecasts if "grows" not in one]
    return [Pair(*one["ends"][one["grows"]], came[-1]) for one in made[last:]] if came else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="files of runs")
    parser.add_argument("--picture", type=Path, help="draw them to this file")
    chosen = parser.parse_args()
    every: dict[str, list[Pair]] = defaultdict(list)
    for path in chosen.runs:
        for run, row in Store(path).rows.items():
            if run.arm in (EVOLVED, IN_SECONDS):
                every[run.task] += pairs(row["forecasts"])
    found = {task: points for task, points in every.items() if points}
    if not found:
        print("None of these runs has a forecast that came to something.")
        return
    for task, points in [*found.items(), ("all", [one for each in found.values() for one in each])]:
        within = sum(one.within for one in points)
        zero = sum(one.expected <= ZERO for one in points)
        ratios = [one.came / one.expected for one in points if one.expected > ZERO]
        print(
            f"{task:10} {within} of {len(points)} within the interval of 80 % ({within / len(points):.0%}), {zero} of "
            f"them as good as zero; came to / expected of the others {told(spread(ratios)) if ratios else '-'}"
        )
    if chosen.picture:
        picture(found, chosen.picture)


def picture(found: dict[str, list[Pair]], path: Path) -> None:
    """Draws what came against what was expected, with intervals of 80 %."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 5))
    for task, points in found.items():
        expected, errors, came = zip(*points, strict=True)
        axis.errorbar(expected, came, xerr=[NORMAL * error for error in errors], fmt="o", ms=3, lw=0.7, label=task)
    every = [value for points in found.values() for one in points for value in (one.expected, one.came)]
    ends = (max(1e-3, min(every)), max(every))
    axis.plot(ends, ends, color="black", lw=0.7)
    axis.set(xscale="log", yscale="log", xlabel="training loss that was forecast", ylabel="what it came to")
    axis.set(xlim=(0.8 * ends[0], 1.2 * ends[1]), ylim=(0.8 * ends[0], 1.2 * ends[1]))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
