"""Step time of the Evolver's loop over that of a bare PyTorch loop on the same model, data, optimizer and loss.

All arms run in one process and take turns, a block of steps each. The Evolver's arm is the unchanged `Evolver.run`:
its data source times the steps between its first and its last batch of a block, and lets the other arms run before it
hands out the next batch. A second copy of the bare loop is a control: its ratio shows what the machine's noise does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timing import Timer, Took, arguments, machine, ratios, spread, told, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import EvolutionConfig, Evolver, TrainingConfig, build_model
from evolve.data import Batches, TensorBatches, datasets
from evolve.tasks import TaskConfig


@dataclass(frozen=True)
class Case:
    """A model, the data it is trained on, and the task with the loss that it stands for."""

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    batch_size: int
    steps: int  # in a block
    task: TaskConfig | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


def fake_images() -> tuple[Tensor, Tensor]:
    """Returns 1,024 made-up images of 32x32 and their labels."""
    train = datasets.get("fake")(samples=1024).train
    return train.inputs, train.targets


def digits() -> tuple[Tensor, Tensor]:
    """Returns the bundled digits, normalised to floats beforehand."""
    train = datasets.get("digits")().train
    return train.examples(train.samples)


def vectors() -> tuple[Tensor, Tensor]:
    """Returns made-up vectors with any number of four labels each."""
    train = datasets.get("fake_multilabel")(samples=1024, features=128).train
    return train.inputs, train.targets


def tokens() -> tuple[Tensor, Tensor]:
    """Returns bytes of Python's own sources, and those that follow them."""
    batch = datasets.get("stdlib_source")(context=64, samples=512).train.examples(512)
    return batch["input_ids"], batch["labels"]


def next_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the loss of a language model."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


CASES = [
    Case("simple_cnn, 3x32x32, batch 64", lambda: build_model("simple_cnn"), fake_images, 64, 8),
    Case("small_resnet, digits 1x8x8, batch 32", lambda: build_model("small_resnet", in_channels=1), digits, 32, 20),
    Case(
        "multilabel, mlp of 512, batch 128",
        lambda: build_model("mlp", in_features=128, hidden=[512, 512], num_classes=4),
        vectors,
        128,
        20,
        TaskConfig(name="multilabel"),
        F.binary_cross_entropy_with_logits,
    ),
    Case(
        "language_modeling, gpt 2 layers of 64, 16 x 64 bytes",
        lambda: build_model("gpt", width=64, depth=2, context=64),
        tokens,
        16,
        10,
        TaskConfig(name="language_modeling"),
        next_token,
    ),
]


BUILDS = 6


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer of every arm."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


class BareLoop:
    """A well-written PyTorch loop over tensors in memory, shuffled each epoch, that logs its loss each step."""

    def __init__(self, model: nn.Module, case: Case, inputs: Tensor, targets: Tensor) -> None:
        self.criterion, batch_size = case.loss, case.batch_size
        self.model = model.train()
        self.optimizer = make_optimizer(model)
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.loss = 0.0
        self.batches = self.endless()

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches, epoch after epoch."""
        while True:
            for chosen in torch.randperm(len(self.inputs)).split(self.batch_size):
                yield self.inputs[chosen], self.targets[chosen]

    def run(self, steps: int) -> Took:
        """Trains and returns the seconds that it took."""
        model, criterion, optimizer, batches = self.model, self.criterion, self.optimizer, self.batches
        timer = Timer()
        for _ in range(steps):
            inputs, targets = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            self.loss += loss.item()
        return timer.read()


class TakingTurns(Batches):
    """The Evolver's data: times its blocks, and runs the other arms between them.

    Args:
        inner: Where the batches come from, epoch after epoch; to the Evolver it all is one epoch.
        steps: Steps in a block.
        blocks: Blocks to time, after one that warms up.
        others: The other arms: each runs so many steps and returns its seconds.
    """

    def __init__(self, inner: TensorBatches, steps: int, blocks: int, others: list[Callable[[int], Took]]) -> None:
        self.inner, self.steps, self.blocks, self.others = inner, steps, blocks, others
        self.rounds: list[list[Took]] = []

    @property
    def samples(self) -> int:
        """Samples of the inner data."""
        return self.inner.samples

    def __len__(self) -> int:
        return self.steps * (self.blocks + 1) + 1

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns the first samples."""
        return self.inner.examples(n)

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches, epoch after epoch."""
        epoch = 0
        while True:
            yield from self.inner.epoch(epoch)
            epoch += 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all batches; a block lasts from the request of its first batch to that of the next block's first."""
        batches = self.endless()
        for block in range(self.blocks + 1):
            timer = Timer()
            for _ in range(self.steps):
                yield next(batches)
            ours = timer.read()
            turn = self.others if block % 2 else self.others[::-1]
            took = {id(run): run(self.steps) for run in turn}
            self.rounds.append([ours, *(took[id(run)] for run in self.others)])
        yield next(batches)


def rounds_of(case: Case, blocks: int) -> list[list[Took]]:
    """Builds all arms anew and returns what each of so many blocks took in each of them."""
    inputs, targets = case.data()
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(case.model())
    bare, control = (BareLoop(model, case, inputs, targets) for model in models[1:])
    whole = len(inputs) // case.batch_size * case.batch_size
    inner = TensorBatches(inputs[:whole], targets[:whole], case.batch_size, shuffle=True)
    bare.inputs = control.inputs = inputs[:whole]  # no arm has a smaller last batch
    data = TakingTurns(inner, case.steps, blocks, [bare.run, control.run])
    Evolver(
        models[0],
        data,
        TensorBatches(inputs[:256], targets[:256], 256, shuffle=False),
        task=case.task,
        optimizer=make_optimizer(models[0]),
        training=TrainingConfig(epochs=1, device="cpu"),
        evolution=EvolutionConfig(
            schedule={"name": "every", "options": {"epochs": 1}}, operators=[{"name": "residual"}]
        ),
    ).run()
    return data.rounds[1:]


def measure(case: Case, repetitions: int) -> dict[str, Any]:
    """Runs all arms of a case and returns its figures.

    The arms are built several times: where a model lies in memory moves its step time by a percent or two.
    """
    blocks = -(-repetitions // BUILDS)
    rounds = [round for _ in range(BUILDS) for round in rounds_of(case, blocks)]
    per_step = [spread([1000 * times[arm].wall / case.steps for times in rounds]) for arm in range(3)]
    return {
        "case": case.name,
        "steps_per_block": case.steps,
        "evolver_ms": per_step[0],
        "bare_ms": per_step[1],
        "ratio": ratios([(times[0], times[1]) for times in rounds]),
        "control_ratio": ratios([(times[2], times[1]) for times in rounds]),
        "rounds": rounds,
    }


def main() -> None:
    """Measures every case and prints a line for each."""
    options = arguments(__doc__.splitlines()[0], repetitions=60).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    found = []
    for case in CASES:
        if options.only in case.name:
            figures = measure(case, options.repetitions)
            found.append(figures)
            print(case.name)
            for clock in Took._fields:
                ours, control = figures["ratio"][clock], figures["control_ratio"][clock]
                print(f"  {clock:4} time: Evolver/bare {told(ours)}, control bare/bare {told(control)}")
            print(f"  ms a step: Evolver {told(figures['evolver_ms'])}, bare {told(figures['bare_ms'])}", flush=True)
    write_json(options.json, "loop", found)


if __name__ == "__main__":
    main()
