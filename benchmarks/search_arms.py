"""Ways to an architecture within CPU seconds: evolution, random search, and fixed networks of a family.

All train on the same images with the same batches, augmentation, optimizer and one cycle of the learning rate, and
decide by the same held-out images. A clock of this process's CPU time tells how far a training is.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from cifar import BF16, Data, accuracy, endless, load, make_optimizer, network, one_cycle, step
from growth_cycle import FAMILY, SMALL
from inherit import fresh
from torch import nn

import evolve
from evolve import TrainingConfig
from evolve.evolver.config import OperatorConfig
from evolve.mutation.limits import Limits
from evolve.population.editing import Editor, labels
from evolve.population.events import Evaluated, SearchEvent
from evolve.population.networks import Networks
from evolve.structure.probe import count_parameters
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.optim import OptimizerConfig

HELD_OUT = 1_000  # of the 10,000 training images: by these everything is decided
PEAK = 0.05  # of the learning rate, where it is not tuned
OPERATORS: list[dict[str, Any]] = [
    {"name": "widen", "sites": ["*"], "options": {"factor": 2.0}},
    {"name": "widen", "options": {"factor": 2.0}},
    {"name": "residual"},
]
REGIONS, WALK, PROBE = 3, 3, 8  # the defaults of `search`


@dataclass(frozen=True)
class Outcome:
    """What an arm came to.

    Attributes:
        val: Accuracy of the chosen model on the held-out images, in percent.
        test: The same on images that no decision looks at.
        params: Parameters of the chosen model.
        cpu: CPU seconds, with everything but the look at the test images.
        evaluations: Networks that were trained.
        what: What was chosen.
    """

    val: float
    test: float
    params: int
    cpu: float
    evaluations: int
    what: str


class Clock:
    """CPU seconds of this process since it was made, without those that were paused."""

    def __init__(self) -> None:
        self._begun = time.process_time()

    def read(self) -> float:
        """Returns the seconds so far."""
        return time.process_time() - self._begun

    def uncounted(self, action: Callable[[], float]) -> float:
        """Returns what `action` does, and leaves out the time that it takes."""
        before = time.process_time()
        found = action()
        self._begun += time.process_time() - before
        return found


def load_split(archive: Path) -> Data:
    """Returns CIFAR-10 with 9,000 images to train on and 1,000 to decide by."""
    whole = load(archive, 10_000)
    cut = len(whole.train[1]) - HELD_OUT
    images, classes = whole.train
    return Data((images[:cut], classes[:cut]), (images[cut:], classes[cut:]), whole.test)


def train_for(
    model: nn.Module,
    data: Data,
    seconds: float,
    peak: float,
    seed: int,
    look: Callable[[Clock], None] | None = None,
    warm_up: float = 0.2,
) -> Clock:
    """Trains for so many CPU seconds, with one cycle of the learning rate over them, and returns their clock.

    Args:
        model: Trained in place, as by `cifar.step`.
        data: Its training images.
        seconds: The budget.
        peak: Highest learning rate.
        seed: Of the order of the images and their augmentation.
        look: Called after each step with the clock; its own time counts.
        warm_up: Share of the seconds in which the learning rate rises.
    """
    clock = Clock()
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model)
    batches = endless(data.batches(seed))
    while (spent := clock.read()) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(spent / seconds, peak, warm_up)
        step(model.train(), optimizer, *next(batches))
        if look is not None:
            look(clock)
    return clock


def held_out(model: nn.Module, data: Data) -> float:
    """Returns the accuracy by which everything is decided."""
    return accuracy(model, data.held_out("val"))


def outcome(model: nn.Module, data: Data, clock: Clock, val: float, evaluations: int, what: str) -> Outcome:
    """Returns what an arm came to whose clock stops now."""
    cpu = clock.read()
    return Outcome(val, accuracy(model, data.held_out("test")), count_parameters(model), cpu, evaluations, what)


def fixed(data: Data, budget: float, seed: int, member: str, peak: float) -> Outcome:
    """Trains one network of the family for the whole budget."""
    clock = Clock()
    torch.manual_seed(seed)
    model = network(*FAMILY[member])
    train_for(model, data, budget, peak, seed)
    return outcome(model, data, clock, held_out(model, data), 1, member)


def random_search(data: Data, budget: float, seed: int, candidates: int, peak: float = PEAK) -> Outcome:
    """Trains random networks of the space from scratch, each for the same share of the budget; the best is chosen."""
    clock = Clock()
    torch.manual_seed(seed)
    named = labels([OperatorConfig.model_validate(operator) for operator in OPERATORS])
    space = Networks(operators=list(named), regions=REGIONS, walk=WALK)
    editor = Editor(named, REGIONS, Limits())
    chance = random.Random(seed)
    root, probe = network(*FAMILY[SMALL]), data.batches(seed).example(PROBE)
    best: tuple[float, nn.Module, str] | None = None
    for number in range(candidates):
        model, edits = walked(root, space, editor, probe, chance)
        left = (budget - clock.read()) / (candidates - number)  # making a network and judging it count
        train_for(model, data, left, peak, seed)
        val = held_out(model, data)
        if best is None or val > best[0]:
            best = val, model, edits
    assert best is not None
    return outcome(best[1], data, clock, best[0], candidates, best[2])


def walked(
    root: nn.Module, space: Networks, editor: Editor, probe: torch.Tensor, chance: random.Random
) -> tuple[nn.Module, str]:
    """Returns a random network as populations begin with, but with weights drawn anew; and what it was edited by."""
    while True:
        model, made = fresh(root), []
        for edit in space.draw(chance).edits:
            answer = editor.edit(model, edit, probe, None, chance)
            if not isinstance(answer, str) and answer:
                made.append(f"{edit.operator}@{edit.where}")
        if made:
            return fresh(model), " ".join(made)


@dataclass(frozen=True)
class EvolutionSettings:
    """What the evolution was given, the same for all budgets.

    Attributes:
        share: Of the CPU time, for the search; in the rest its best network is trained on, as by `evolve resume`.
        child: Share of the budget that a child is trained for, in seconds: what is slower has to earn it.
        start: Children's lengths that the first network gets.
        children: Of a round, beside the trunk that is trained on for as long.
        peak: Highest learning rate of a child; it falls to zero at the end.
        ramp: Share of a child's training in which it rises: at once it would break what was just drawn at random.
        last: Highest learning rate of the last training.
        warm_up: Share of the last training in which it rises; weights that are inherited need little.
    """

    share: float = 0.1
    child: float = 0.02
    start: float = 1.0
    children: int = 1
    peak: float = 0.05
    ramp: float = 0.5
    last: float = PEAK
    warm_up: float = 0.1


def evolution(data: Data, budget: float, seed: int, settings: EvolutionSettings | None = None) -> Outcome:
    """Evolves the small network of the family, children inheriting weights, and trains the best one on."""
    settings = settings or EvolutionSettings()
    clock = Clock()
    torch.manual_seed(seed)
    model = network(*FAMILY[SMALL])

    def stop(event: SearchEvent) -> None:
        if isinstance(event, Evaluated) and clock.read() >= (settings.share - settings.child) * budget:
            event.search.stop()

    # On a machine that is shared seconds are those of the CPU here, as for all arms.
    with tempfile.TemporaryDirectory() as folder, patch.object(time, "perf_counter", time.process_time):
        found = evolve.search(
            model,
            (data.batches(seed), data.held_out("val")),
            algorithm={"name": "trunk", "options": {"children": settings.children}},
            operators=OPERATORS,
            budget=1_000_000,  # the clock stops it
            again=0,
            best=1,
            start=settings.start,
            training=TrainingConfig(
                seconds=settings.child * budget,
                precision="bf16" if BF16 else "fp32",
                channels_last=True,
                device="cpu",
                seed=seed,
            ),
            optimizer=sgd(settings.peak),
            lr_schedule=LrScheduleConfig(name="wsd", warmup=settings.ramp, options={"decay": 0.4}),
            output=folder,
            overwrite=True,
            callbacks=[stop],
        )
        if clock.read() < (settings.share - settings.child) * budget:
            raise KeyboardInterrupt  # a signal ended the search; a run that is cut short does not count
        model = evolve.load(found.folder, model)
        code = found.best[0].code or {}
    train_for(model, data, budget - clock.read(), settings.last, seed, warm_up=settings.warm_up)
    edits = " ".join(name for name, count in code.items() for _ in range(count))
    return outcome(model, data, clock, held_out(model, data), found.evaluations, edits or "the first")


def seconds_a_step(model: nn.Module, data: Data, seed: int) -> float:
    """Returns the CPU seconds of a training step, by ten of them on a copy of a network."""
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    optimizer, batches = make_optimizer(copied), endless(data.batches(seed))
    step(copied, optimizer, *next(batches))  # the first one is slower
    clock = Clock()
    for _ in range(10):
        step(copied, optimizer, *next(batches))
    return clock.read() / 10


def sgd(lr: float) -> OptimizerConfig:
    """Returns the optimizer of `cifar.make_optimizer` as a configuration."""
    return OptimizerConfig(name="SGD", options={"lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4})


def warm(data: Data) -> None:
    """Makes a tiny search, so that no clock sees what is imported on the way."""
    evolution(data, 1.0, 0, EvolutionSettings(share=0.1, child=0.02))
