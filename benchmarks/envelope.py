"""What the runs of a family come to: the evolved run beside the best fixed member, in a table and in a picture."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from family import EVOLVED, IN_SECONDS, Store, Workload
from timing import spread, told


def summary(work: Workload, store: Store) -> list[dict[str, Any]]:
    """Tells, budget by budget, where the evolved run ends beside the best fixed member; returns the cases.

    That is the run whose budget is in FLOPs; and the one whose budget is in seconds, beside what the fixed members
    reach in the CPU seconds that it took, between their budgets interpolated in the logarithm. And how many times fewer
    seconds evolved runs take to what the largest member reaches.
    """
    sign = 1 if work.better == "min" else -1
    largest = max(work.members, key=lambda member: work.flops(work.make(member)))
    cases = []
    for budget in work.budgets:
        ours, timed = (store.figures(work.name, arm, budget, "test") for arm in (EVOLVED, IN_SECONDS))
        found = {member: store.figures(work.name, member, budget, "test") for member in work.members}
        means = {member: statistics.fmean(figures) for member, figures in found.items() if figures}
        if not means or not ours or not timed:
            continue
        best = min(means, key=lambda member: sign * means[member])
        cpu = store.seconds(work.name, IN_SECONDS, budget)
        reached = {member: _reached(points(work, store, member, budget), cpu, sign) for member in means}
        fastest = min(reached, key=lambda member: sign * reached[member])
        regret = sign * (statistics.fmean(ours) - means[best])
        regret_cpu = sign * (statistics.fmean(timed) - reached[fastest])
        runs = [run for run in store.rows if run.task == work.name and run.budget == budget]
        case = {
            "name": f"{work.name}, budget {budget:g}",
            "evolved": spread(ours),
            "mean": statistics.fmean(ours),
            "sizes": [store.rows[run]["size"] for run in runs if run.arm == EVOLVED],
            "evolved_in_seconds": spread(timed),
            "sizes_in_seconds": [store.rows[run]["size"] for run in runs if run.arm == IN_SECONDS],
            "best_fixed": best,
            "means": means,
            "seeds": {member: len(figures) for member, figures in found.items()},
            "regret": regret,
            "regret_percent": 100 * regret / abs(means[best]),
            "best_in_seconds": fastest,
            "regret_in_seconds": regret_cpu,
            "regret_in_seconds_percent": 100 * regret_cpu / abs(reached[fastest]),
            "cpu": cpu,
            "sweep": _sweep(work, store, budget) / cpu,
            "faster": _faster(work, store, largest, budget) if largest in means else None,
        }
        faster = f"; what {largest} reaches, {case['faster']} times faster" if case["faster"] else ""
        print(
            f"{case['name']}\n"
            f"  FLOPs: evolved {case['mean']:.3f}, {told(case['evolved'])} ({', '.join(case['sizes'])}), "
            f"best fixed {best} {means[best]:.3f} (seeds: {len(found[best])}): regret {regret:+.3f} "
            f"({case['regret_percent']:+.2f} %)\n"
            f"  {cpu:.1f} CPU seconds: evolved {statistics.fmean(timed):.3f}, {told(case['evolved_in_seconds'])} "
            f"({', '.join(case['sizes_in_seconds'])}), best fixed {fastest} {reached[fastest]:.3f}: regret "
            f"{regret_cpu:+.3f} ({case['regret_in_seconds_percent']:+.2f} %); the sweep takes {case['sweep']:.1f} "
            f"times that{faster}"
        )
        cases.append(case)
    return cases


def points(work: Workload, store: Store, arm: str, beside: float | None = None) -> list[tuple[float, float]]:
    """Returns CPU seconds and mean test figure of an arm at each budget at which it was run.

    Args:
        work: The workload.
        store: Its runs.
        arm: A member, or the evolved run.
        beside: Budget of the evolved runs beside which steps were timed; None for each budget's own.
    """
    return sorted(
        (store.seconds(work.name, arm, budget, beside), store.mean(work.name, arm, budget, "test"))
        for budget in (*work.shorter, *work.budgets)
        if store.figures(work.name, arm, budget, "test") and store.figures(work.name, IN_SECONDS, budget, "test")
    )


def _reached(found: Sequence[tuple[float, float]], cpu: float, sign: int) -> float:
    """Returns the test figure in so many CPU seconds.

    In fewer than at any budget it is by the line of the first two, but no better than at the first of them.
    """
    for (start, before), (end, after) in itertools.pairwise(found):
        if cpu <= end:
            figure = before + (after - before) * math.log(cpu / start) / math.log(end / start)
            return sign * max(sign * figure, sign * before) if cpu < start else figure
    return found[-1][1]


def _sweep(work: Workload, store: Store, budget: float) -> float:
    """Returns the CPU seconds of each fixed member at each learning rate, with one seed."""
    took = store.figures(work.name, IN_SECONDS, budget, "step_cpu")
    return math.fsum(
        row["steps"] * statistics.fmean(each[run.arm] for each in took)
        for run, row in store.rows.items()
        if (run.task, run.budget, run.seed) == (work.name, budget, 0) and run.arm in work.members
    )


def _faster(work: Workload, store: Store, largest: str, budget: float) -> str:
    """Returns how many times fewer CPU seconds evolved runs take to what the largest member reaches at a budget."""
    sign = 1 if work.better == "min" else -1
    goal, cpu = sign * store.mean(work.name, largest, budget, "test"), store.seconds(work.name, largest, budget)
    found = [(seconds, sign * figure) for seconds, figure in points(work, store, IN_SECONDS)]
    if found[0][1] <= goal:
        return f"more than {cpu / found[0][0]:.1f}"
    for (start, before), (end, after) in itertools.pairwise(found):
        if after <= goal < before:
            return f"{cpu / (start * (end / start) ** ((before - goal) / (before - after))):.1f}"
    return f"fewer than {cpu / found[-1][0]:.1f}"


def picture(works: Sequence[tuple[Workload, Store]], path: Path, figure_name: str) -> None:
    """Draws what fixed members and evolved runs reach against CPU seconds, a panel for each workload.

    Args:
        works: Workloads with their runs; those without evolved ones are left out.
        path: Of the PNG or SVG.
        figure_name: What `test` is, such as "loss, nats a byte".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    works = [(work, store) for work, store in works if points(work, store, IN_SECONDS)]
    figure, axes = plt.subplots(1, len(works), figsize=(max(6.0, 4.0 * len(works)), 4), squeeze=False)
    for axis, (work, store) in zip(axes[0], works, strict=True):
        for member in (*work.members, IN_SECONDS):
            style = (
                {"marker": "*", "ms": 10, "lw": 2, "color": "black"}
                if member == IN_SECONDS
                else {"marker": "o", "ms": 3}
            )
            if found := points(work, store, member):
                axis.plot(*zip(*found, strict=True), label=member, **style)
        axis.set(xscale="log", xlabel="CPU seconds, one thread", title=work.name)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(figure_name)
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
