"""What the runs of a family come to: the evolved run beside the best fixed member, in a table and in a picture."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from family import EVOLVED, Store, Workload
from timing import spread, told


def summary(work: Workload, store: Store) -> list[dict[str, Any]]:
    """Tells, budget by budget, where the evolved run ends beside the best fixed member; returns the cases.

    Beside it in FLOPs, and in CPU seconds: against what the fixed members reach in the seconds that the evolved run
    took, between their budgets interpolated in the logarithm.
    """
    cases = []
    for budget in work.budgets:
        ours = store.figures(work.name, EVOLVED, budget, "test")
        found = {member: store.figures(work.name, member, budget, "test") for member in work.members}
        means = {member: statistics.fmean(figures) for member, figures in found.items() if figures}
        if not means or not ours:
            continue
        best = (min if work.better == "min" else max)(means, key=lambda member: means[member])
        cpu = store.mean(work.name, EVOLVED, budget, "cpu")
        reached = {member: _reached(work, store, member, cpu) for member in means}
        fastest = (min if work.better == "min" else max)(reached, key=lambda member: reached[member])
        sign = 1 if work.better == "min" else -1
        regret, regret_cpu = (sign * (statistics.fmean(ours) - value) for value in (means[best], reached[fastest]))
        runs = [run for run in store.rows if run.task == work.name and run.budget == budget]
        case = {
            "name": f"{work.name}, budget {budget:g}",
            "evolved": spread(ours),
            "mean": statistics.fmean(ours),
            "sizes": [store.rows[run]["size"] for run in runs if run.arm == EVOLVED],
            "best_fixed": best,
            "means": means,
            "seeds": {member: len(figures) for member, figures in found.items()},
            "regret": regret,
            "regret_percent": 100 * regret / abs(means[best]),
            "best_in_seconds": fastest,
            "regret_in_seconds": regret_cpu,
            "regret_in_seconds_percent": 100 * regret_cpu / abs(reached[fastest]),
            "cpu": cpu,
            "sweep": sum(store.rows[run]["cpu"] for run in runs if run.arm != EVOLVED and run.seed == 0) / cpu,
        }
        print(
            f"{case['name']}: evolved {case['mean']:.3f}, by seed {told(case['evolved'])} "
            f"({', '.join(case['sizes'])}); best fixed in FLOPs {best} {means[best]:.3f} (seeds: {len(found[best])}): "
            f"regret {regret:+.3f} ({case['regret_percent']:+.2f} %), "
            f"in CPU seconds {fastest} {reached[fastest]:.3f}: regret {regret_cpu:+.3f} "
            f"({case['regret_in_seconds_percent']:+.2f} %); {cpu:.0f} s, the sweep {case['sweep']:.1f} times that"
        )
        cases.append(case)
    return cases


def _reached(work: Workload, store: Store, member: str, cpu: float) -> float:
    """Returns the mean test figure of a member in so many CPU seconds."""
    points = sorted(
        (store.mean(work.name, member, budget, "cpu"), store.mean(work.name, member, budget, "test"))
        for budget in work.budgets
        if store.figures(work.name, member, budget, "test")
    )
    for (start, before), (end, after) in itertools.pairwise(points):
        if start <= cpu <= end:
            return before + (after - before) * math.log(cpu / start) / math.log(end / start)
    return points[0][1] if cpu < points[0][0] else points[-1][1]


def picture(works: Sequence[tuple[Workload, Store]], path: Path, figure_name: str) -> None:
    """Draws what fixed members and evolved runs reach against CPU seconds, a panel for each workload.

    Args:
        works: Workloads with their runs.
        path: Of the PNG or SVG.
        figure_name: What `test` is, such as "loss, nats a byte".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(works), figsize=(max(6.0, 4.0 * len(works)), 4), squeeze=False)
    for axis, (work, store) in zip(axes[0], works, strict=True):
        for member in (*work.members, EVOLVED):
            points = sorted(
                (store.mean(work.name, member, budget, "cpu"), store.mean(work.name, member, budget, "test"))
                for budget in work.budgets
                if store.figures(work.name, member, budget, "test")
            )
            style = (
                {"marker": "*", "ms": 10, "lw": 2, "color": "black"} if member == EVOLVED else {"marker": "o", "ms": 3}
            )
            axis.plot(*zip(*points, strict=True), label=member, **style)
        axis.set(xscale="log", xlabel="CPU seconds, one thread", title=work.name)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(figure_name)
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
