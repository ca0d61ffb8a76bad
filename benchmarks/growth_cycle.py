"""Does growing pay? A run that evolves beside every fixed network of its family, at equal compute.

A budget is what so many epochs of the final network cost in FLOPs. Each fixed network is trained for each budget on its
own, with one cycle of the learning rate over all of it, at several peak learning rates with the first seed, and at the
best of them (by the validation images) with the others. The evolved arm has one configuration (`growth_cycle.yaml`) for
all budgets and both sizes of the training data. Runs are kept, a line of JSON each, and not made twice; the arms take
turns.

Printed are, for each budget, the accuracies on test images that decide nothing here, and how much compute the evolved
run needs to be as accurate as the final network from scratch, and as the better of the final and the small one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from cifar import Data, accuracy, add_data, load, network, sample_flops, train
from timing import Timer, Took, arguments, spread, told, write_json

from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.optim import OptimizerConfig

FAMILY = {"w8d1": (8, 1), "w12d1": (12, 1), "w16d1": (16, 1), "w8d2": (8, 2)}
SMALL, FINAL, EVOLVED = "w8d1", "w16d1", "evolved"
RATES = (0.05, 0.025, 0.1)
BUDGETS = {10_000: (4.0, 8.0, 16.0, 32.0), 45_000: (0.4, 0.8, 1.6, 3.2)}
SHORT = {10_000: (1.0, 2.0), 45_000: (0.1, 0.2)}  # of the evolved arm alone: how soon it is as accurate as a rival
CONFIG = Path(__file__).with_suffix(".yaml")


class Run(NamedTuple):
    """What is trained; `budget` in epochs' worth of the final network."""

    arm: str
    images: int
    budget: float
    lr: float
    seed: int


class Store:
    """Runs that are done, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Run, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            self.rows[Run(*(row[field] for field in Run._fields))] = row

    def add(self, run: Run, figures: dict[str, Any]) -> None:
        """Keeps the figures of a run."""
        self.rows[run] = {**run._asdict(), **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[run]) + "\n")

    def best_lr(self, arm: str, images: int, budget: float) -> float | None:
        """Returns the learning rate with the best validation accuracy at the first seed."""
        tried = {r.lr: row["val"] for r, row in self.rows.items() if r[:3] == (arm, images, budget) and r.seed == 0}
        return max(tried, key=lambda lr: tried[lr]) if tried else None

    def figures(self, arm: str, images: int, budget: float, key: str) -> list[float]:
        """Returns one figure of all seeds, at the best learning rate."""
        lr = self.best_lr(arm, images, budget)
        return [row[key] for run, row in sorted(self.rows.items()) if run[:4] == (arm, images, budget, lr)]

    def mean(self, arm: str, images: int, budget: float, key: str = "test") -> float:
        """Returns the mean of a figure over the seeds, NaN where there is no run."""
        found = self.figures(arm, images, budget, key)
        return statistics.fmean(found) if found else math.nan


def settings() -> dict[str, Any]:
    """Returns the evolved arm's configuration as written."""
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return found


def plan(store: Store, seeds: int, budgets: dict[int, tuple[float, ...]]) -> Iterator[Run]:
    """Yields the runs to make: the learning rates first, then all arms seed by seed, small budgets before large."""
    lr = settings()["optimizer"]["options"]["lr"]
    cells = sorted(((images, budget) for images, of in budgets.items() for budget in of), key=lambda c: c[0] * c[1])
    for images, budget in cells:
        yield from (Run(arm, images, budget, rate, 0) for rate in RATES for arm in FAMILY)
    for seed in range(seeds):
        for images, budget in cells:
            for arm in FAMILY:
                yield Run(arm, images, budget, store.best_lr(arm, images, budget) or RATES[0], seed)
            yield Run(EVOLVED, images, budget, lr, seed)
        yield from (Run(EVOLVED, images, budget, lr, seed) for images, of in SHORT.items() for budget in of)


def evolve(data: Data, flops: float, seed: int, config: dict[str, Any]) -> tuple[torch.nn.Module, Took, dict[str, Any]]:
    """Makes an evolved run; returns the network, the seconds and what became of it."""
    torch.manual_seed(seed)
    model = network(**config["model"])
    evolver = Evolver(
        model,
        data.batches(seed),
        data.some_val(500),
        optimizer=OptimizerConfig(**config["optimizer"]),
        lr_schedule=LrScheduleConfig(**config["lr_schedule"]),
        training=TrainingConfig(**config["training"] | {"flops": flops, "seed": seed}),
        evolution=EvolutionConfig(**config["evolution"]),
        progress=False,
    )
    timer = Timer()
    evolver.run()
    took = timer.read()
    grown = [record.step for record in evolver.lineage.applied if record.operator == "widen"]
    return model, took, {"steps": evolver.state.step, "grown_at": grown, "spent": evolver.state.flops}


def make(run: Run, data: Data) -> dict[str, Any]:
    """Trains one run and returns its figures."""
    flops = run.budget * run.images * sample_flops(network(*FAMILY[FINAL]))
    if run.arm == EVOLVED:
        model, took, more = evolve(data, flops, run.seed, settings())
    else:
        torch.manual_seed(run.seed)
        model = network(*FAMILY[run.arm])
        took, steps = train(model, data, flops, run.lr, run.seed)
        more = {"steps": steps}
    scores = {name: accuracy(model, data.held_out(name)) for name in ("val", "test")}
    return {"flops": flops, "cpu": took.cpu, "wall": took.wall, **more, **scores}


def needed(store: Store, images: int, budgets: tuple[float, ...], goal: float, key: str | None = None) -> float:
    """Returns the budget at which the evolved runs are as accurate as `goal`, interpolated in its logarithm.

    Where the smallest budget is enough already, that is what is returned; infinity where the largest is not.

    Args:
        store: The runs.
        images: Training images.
        budgets: Those of the evolved runs, increasing.
        goal: Accuracy on the test images.
        key: Returns this figure of the runs, such as `cpu`, instead of the budget.
    """
    known = [b for b in (*SHORT[images], *budgets) if store.figures(EVOLVED, images, b, "test")]
    points = [(store.mean(EVOLVED, images, b, key) if key else b, store.mean(EVOLVED, images, b)) for b in known]
    if points and points[0][1] >= goal:
        return points[0][0]
    for (x, low), (further, high) in pairwise(points):
        if high >= goal:
            return float(x * (further / x) ** ((goal - low) / (high - low)))
    return math.inf


def compare(store: Store, images: int, budget: float, budgets: tuple[float, ...]) -> dict[str, Any]:
    """Returns the figures of one budget."""
    arms = [arm for arm in (*FAMILY, EVOLVED) if store.figures(arm, images, budget, "test")]
    mean = {arm: store.mean(arm, images, budget) for arm in arms}
    fixed = {arm: value for arm, value in mean.items() if arm != EVOLVED}
    best = max(fixed, key=lambda arm: fixed[arm])
    rivals = {"final": FINAL, "better": max((FINAL, SMALL), key=lambda arm: mean[arm])}
    saved = {
        f"{unit}_saved_of_{name}": of_rival / needed(store, images, budgets, mean[arm], key)
        for name, arm in rivals.items()
        for unit, key, of_rival in (("flops", None, budget), ("cpu", "cpu", store.mean(arm, images, budget, "cpu")))
    }
    return {
        "name": f"{images} images, budget {budget:g}",
        "images": images,
        "budget": budget,
        "test": {arm: spread(store.figures(arm, images, budget, "test")) for arm in arms},
        "mean": mean,
        "cpu": {arm: store.mean(arm, images, budget, "cpu") for arm in arms},
        "lr": {arm: store.best_lr(arm, images, budget) for arm in fixed},
        "best_fixed": best,
        "over_best_fixed": mean[EVOLVED] - fixed[best],
        **saved,
    }


def summary(store: Store, budgets: dict[int, tuple[float, ...]]) -> list[dict[str, Any]]:
    """Returns one case for each budget that all arms were trained for, after telling it."""
    cases = []
    for images, of in budgets.items():
        for budget in of:
            if all(store.figures(arm, images, budget, "test") for arm in (SMALL, FINAL, EVOLVED)):
                cases.append(case := compare(store, images, budget, of))
                best = case["best_fixed"]
                print(
                    f"{case['name']}: evolved {told(case['test'][EVOLVED])} %, best fixed ({best}) "
                    f"{told(case['test'][best])} %, {case['over_best_fixed']:+.2f} points; as accurate as the final "
                    f"net with {case['flops_saved_of_final']:.2f}x fewer FLOPs, {case['cpu_saved_of_final']:.2f}x less "
                    f"CPU time, as the better of both with {case['flops_saved_of_better']:.2f}x, "
                    f"{case['cpu_saved_of_better']:.2f}x"
                )
    return cases


def picture(store: Store, budgets: dict[int, tuple[float, ...]], path: Path) -> None:
    """Draws accuracy against compute: the evolved runs, the fixed networks, and their envelope."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(budgets), figsize=(10, 4), sharey=True, squeeze=False)
    for axis, (images, of) in zip(axes[0], budgets.items(), strict=True):
        unit = images * sample_flops(network(*FAMILY[FINAL])) / 1e12
        curves = {
            arm: [(b * unit, store.mean(arm, images, b)) for b in (*SHORT[images], *of)] for arm in (*FAMILY, EVOLVED)
        }
        curves = {arm: [(x, y) for x, y in points if not math.isnan(y)] for arm, points in curves.items()}
        for arm in FAMILY:
            axis.plot(*zip(*curves[arm], strict=True), "o-", ms=3, lw=1, alpha=0.7, label=f"{arm}, fixed")
        envelope = [(b * unit, max(y for arm in FAMILY if not math.isnan(y := store.mean(arm, images, b)))) for b in of]
        axis.plot(*zip(*envelope, strict=True), color="0.8", lw=8, zorder=0, label="best fixed network")
        axis.plot(*zip(*curves[EVOLVED], strict=True), "k*-", ms=9, label="evolved")
        axis.set(xscale="log", xlabel="training compute, TFLOPs", title=f"CIFAR-10, {images:,} training images")
        ticks = [b * unit for b in (*SHORT[images], *of)]
        axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--runs", type=Path, default=Path("growth_cycle.jsonl"), help="where runs are kept")
    parser.add_argument("--picture", type=Path, help="draw accuracy against compute to this file")
    parser.add_argument("--summary", action="store_true", help="make no runs, tell those that are kept")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    store = Store(chosen.runs)
    data = {images: load(chosen.data, images) for images in BUDGETS}
    for run in () if chosen.summary else plan(store, chosen.repetitions, BUDGETS):
        if run not in store.rows and chosen.only in run.arm:
            store.add(run, make(run, data[run.images]))
            print(json.dumps(store.rows[run]), flush=True)
    cases = summary(store, BUDGETS)
    if chosen.picture:
        picture(store, BUDGETS, chosen.picture)
    write_json(chosen.json, "growth_cycle", cases)


if __name__ == "__main__":
    main()
