"""A family of fixed networks under `wsd`: what each of them reaches at each budget, for the benchmarks of growth.

A budget is counted in FLOPs of training steps, or for one of two evolved runs in seconds. As the learning rate is held
until the last part of the budget, one run passes through the stable phases of all budgets: at each of them a copy of
network and optimizer is set aside and cooled down, which gives the very run that this budget alone would have been.
Runs are kept, a line of JSON each, and not made twice.

What a fixed member costs in CPU seconds is its steps times what a step of it takes, measured in turns
right before and after an evolved run: the seconds of both sides are of the same minutes on the same machine.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import Timer, arguments, seconds, taking_turns
from torch import Tensor, nn

from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.training.events import ForecastMade
from evolve.training.lr_schedule import LrScheduleConfig

WARM = 20  # steps in which the learning rate rises
DECAY = 0.2  # part of the budget in which it falls, as 1 - sqrt(x)
EVOLVED, IN_SECONDS = "evolved", "evolved, seconds"  # the unit of its budget is FLOPs, or seconds
TURNS = 7  # in which the members' steps are timed, before and after an evolved run
TURN = 0.02  # CPU seconds that a member's turn takes at least


class Run(NamedTuple):
    """What is trained."""

    task: str
    arm: str
    budget: float
    lr: float
    seed: int


@dataclass
class Workload:
    """A family of networks and what they are trained on.

    Attributes:
        name: Of the workload, or of one of its data sets.
        members: Networks by name, from small to large.
        rates: Peak learning rates that each fixed member is tuned over; the first is the evolved arm's.
        budgets: In steps of the member `unit`.
        unit: Name of that member.
        make: A new network of a member.
        optimizer: Its optimizer.
        batches: Endless training batches of a seed.
        loss: The loss of a network on a batch.
        size: Name of the member that a network is, or of the next smaller one.
        flops: FLOPs of a training step of a network.
        evolver: The evolver of a network, a seed and keyword arguments for it: data and task.
        scores: Figures of a seed and a network on `val`, which chooses the learning rate, and on `test`, which tells.
        better: Whether a `min` or a `max` of `val` is the best.
        shorter: Further budgets of fixed members and of evolved runs in seconds, which tell what is reached in fewer
            seconds than the first of `budgets` takes.
        training: Further options of the training of evolved runs.
        near: How far behind the best one, in `val`, a member may be with the first seed to be trained with others too.
    """

    name: str
    members: Sequence[str]
    rates: Sequence[float]
    budgets: Sequence[float]
    unit: str
    make: Callable[[str], nn.Module]
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    flops: Callable[[nn.Module], int]
    size: Callable[[nn.Module], str]
    scores: Callable[[int, nn.Module], dict[str, float]]
    evolver: Callable[[nn.Module, int, dict[str, Any]], Evolver]
    better: str = "min"
    shorter: Sequence[float] = ()
    near: float = math.inf
    training: Mapping[str, Any] = field(default_factory=dict)
    _unit_flops: dict[str, int] = field(default_factory=dict)

    def allowance(self, budget: float) -> float:
        """Returns a budget in FLOPs."""
        if self.unit not in self._unit_flops:
            self._unit_flops[self.unit] = self.flops(self.make(self.unit))
        return budget * self._unit_flops[self.unit]


class Store:
    """Runs that are done, in a file of JSON lines."""

    def __init__(self, path: Path, better: str = "min") -> None:
        self.path, self.better = path, better
        self.rows: dict[Run, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            self.rows[Run(*(row[name] for name in Run._fields))] = row

    def add(self, run: Run, figures: Mapping[str, Any]) -> None:
        """Keeps the figures of a run."""
        self.rows[run] = {**run._asdict(), **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[run]) + "\n")

    def first(self, task: str, arm: str, budget: float) -> dict[float, float]:
        """Returns the `val` figures of the first seed by learning rate."""
        return {r.lr: row["val"] for r, row in self.rows.items() if r[:3] == (task, arm, budget) and r.seed == 0}

    def best_lr(self, task: str, arm: str, budget: float) -> float | None:
        """Returns the learning rate that was best on the `val` figure of the first seed."""
        tried = self.first(task, arm, budget)
        choose = min if self.better == "min" else max
        return choose(tried, key=lambda lr: tried[lr]) if tried else None

    def figures(self, task: str, arm: str, budget: float, key: str) -> list[Any]:
        """Returns one figure of all seeds at the best learning rate."""
        lr = self.best_lr(task, arm, budget)
        return [row[key] for run, row in sorted(self.rows.items()) if run[:4] == (task, arm, budget, lr)]

    def mean(self, task: str, arm: str, budget: float, key: str) -> float:
        """Returns the mean of a figure over the seeds at the best learning rate."""
        return statistics.fmean(self.figures(task, arm, budget, key))

    def seconds(self, task: str, arm: str, budget: float, beside: float | None = None) -> float:
        """Returns the CPU seconds of a run, the mean over the seeds.

        Args:
            task: Of the run, likewise `arm` and `budget`.
            arm: See above.
            budget: See above.
            beside: Budget of the evolved runs in seconds beside which a fixed member's steps were timed; None for its
                own.
        """
        if arm in (EVOLVED, IN_SECONDS):
            return self.mean(task, arm, budget, "cpu")
        took = self.figures(task, IN_SECONDS, budget if beside is None else beside, "step_cpu")
        return self.mean(task, arm, budget, "steps") * statistics.fmean(each[arm] for each in took)


def wsd(progress: float, steps: int) -> float:
    """Returns the factor of the learning rate after a part of the budget and so many steps."""
    if steps < WARM:
        return (steps + 1) / (WARM + 1)
    return 1.0 if progress <= 1 - DECAY else 1 - float(((progress - 1 + DECAY) / DECAY) ** 0.5)


@dataclass
class _Training:
    """A network on its way, with the next batch it will see."""

    work: Workload
    model: nn.Module
    optimizer: torch.optim.Optimizer
    price: int
    lr: float
    spent: float = 0.0
    steps: int = 0

    def until(self, flops: float, factor: Callable[[float, int], float], batches: Iterator[Any]) -> None:
        """Trains until so many FLOPs are spent."""
        while self.spent < flops:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * factor(self.spent, self.steps)
            self.step(batches)

    def step(self, batches: Iterator[Any]) -> None:
        """Makes a training step."""
        batch = next(batches)
        self.optimizer.zero_grad(set_to_none=True)
        self.work.loss(self.model, batch).backward()
        self.optimizer.step()
        self.spent += self.price
        self.steps += 1


def fixed(
    work: Workload, member: str, lr: float, seed: int, budgets: Sequence[float]
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Trains one member through the stable phases of all budgets, and cools a copy down at each; yields the runs."""
    torch.manual_seed(seed)
    model = work.make(member).train()
    trunk = _Training(work, model, work.optimizer(model, lr), work.flops(model), lr)
    batches = work.batches(seed)
    for budget in sorted(budgets):
        whole = work.allowance(budget)
        trunk.until((1 - DECAY) * whole, lambda spent, steps: wsd(0.0, steps), batches)
        branch = copy.copy(trunk)
        branch.model, branch.optimizer = copy.deepcopy((trunk.model, trunk.optimizer))
        batches, coming = itertools.tee(batches)
        branch.model.train()
        branch.until(whole, lambda spent, steps, whole=whole: wsd(spent / whole, steps), coming)
        del coming
        stable = work.scores(seed, trunk.model)["val"]
        trunk.model.train()
        figures = {"steps": branch.steps, "stable": stable, **work.scores(seed, branch.model)}
        yield Run(work.name, member, budget, lr, seed), figures


def evolved(work: Workload, arm: str, budget: float, seed: int) -> tuple[Run, dict[str, Any]]:
    """Makes an evolved run: the smallest member and `evolution: auto`, at the first learning rate.

    Its CPU seconds hold all that it does. What the others take is said beside it, so that what else the machine is
    doing slows both down alike. Where its budget is in seconds, it is what the member `unit` would take.
    """
    before = step_seconds(work, seed)
    if arm == IN_SECONDS:
        allowed = {"seconds": budget * statistics.median(before[work.unit])}
    else:
        allowed = {"flops": work.allowance(budget)}
    torch.manual_seed(seed)
    model, lr = work.make(work.members[0]), work.rates[0]
    forecasts: list[Mapping[str, Any]] = []
    evolver = work.evolver(
        model,
        seed,
        {
            "optimizer": work.optimizer(model, lr),
            "lr_schedule": LrScheduleConfig(name="wsd", warmup=WARM, options={"decay": DECAY}),
            "training": TrainingConfig(epochs=None, seed=seed, **work.training, **allowed),
            "evolution": EvolutionConfig.model_validate("auto"),
            "progress": False,
        },
    )
    evolver.events.listen(lambda event: forecasts.append(event.facts), ForecastMade)
    timer = Timer()
    evolver.run()
    cpu = timer.read().cpu
    after = step_seconds(work, seed)
    figures = {
        "cpu": cpu,
        "step_cpu": {member: statistics.median(took + after[member]) for member, took in before.items()},
        "flops": evolver.state.flops,
        "steps": evolver.state.step,
        "forecasts": forecasts,
    }
    return Run(work.name, arm, budget, lr, seed), {**figures, "size": work.size(model), **work.scores(seed, model)}


def step_seconds(work: Workload, seed: int) -> dict[str, list[float]]:
    """Returns CPU seconds of a training step of each member, turn by turn."""
    arms = {}
    for member in work.members:
        model = work.make(member).train()
        training = _Training(work, model, work.optimizer(model, work.rates[0]), work.flops(model), work.rates[0])
        step = partial(training.step, work.batches(seed))
        count = math.ceil(TURN / max(seconds(step).cpu, TURN / 100))
        arms[member] = (partial(_repeated, step, count), count)
    rounds = taking_turns({member: partial(seconds, arm) for member, (arm, _) in arms.items()}, TURNS)
    return {member: [took[member].cpu / count for took in rounds] for member, (_, count) in arms.items()}


def _repeated(action: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        action()


def family_arguments(doc: str, name: str, repetitions: int) -> argparse.ArgumentParser:
    """Returns the options of a family's benchmark."""
    parser = arguments(doc, repetitions=repetitions)
    parser.add_argument("--runs", type=Path, default=Path(f"{name}.jsonl"), help="where runs are kept (%(default)s)")
    parser.add_argument("--picture", type=Path, help="draw them to this file")
    parser.add_argument("--summary", action="store_true", help="make no runs, tell those that are kept")
    return parser


def sweep(work: Workload, store: Store, seeds: int) -> None:
    """Makes all runs: fixed members at all learning rates with one seed, those that may be best with the others, too.

    With the other seeds each is trained at its best learning rate.
    """
    every = (*work.shorter, *work.budgets)
    for lr in work.rates:
        for member in work.members:
            _fill(work, store, member, lr, 0, every)
    for seed in range(seeds):
        for arm, budgets in ((EVOLVED, work.budgets), (IN_SECONDS, every)):
            for budget in budgets:
                if Run(work.name, arm, budget, work.rates[0], seed) not in store.rows:
                    _keep(store, *evolved(work, arm, budget, seed))
    for seed in range(1, seeds):
        for member in work.members:
            best: dict[float, list[float]] = {}
            for budget in every:
                if _may_be_best(work, store, member, budget):
                    best.setdefault(store.best_lr(work.name, member, budget) or work.rates[0], []).append(budget)
            for lr, budgets in best.items():
                _fill(work, store, member, lr, seed, budgets)


def _may_be_best(work: Workload, store: Store, member: str, budget: float) -> bool:
    sign = 1 if work.better == "min" else -1
    first = {name: min(sign * val for val in store.first(work.name, name, budget).values()) for name in work.members}
    return first[member] <= min(first.values()) + work.near


def _fill(work: Workload, store: Store, member: str, lr: float, seed: int, budgets: Sequence[float]) -> None:
    missing = [b for b in budgets if Run(work.name, member, b, lr, seed) not in store.rows]
    if missing:
        for run, figures in fixed(work, member, lr, seed, missing):
            _keep(store, run, figures)


def _keep(store: Store, run: Run, figures: Mapping[str, Any]) -> None:
    store.add(run, figures)
    print(json.dumps(store.rows[run]), flush=True)
