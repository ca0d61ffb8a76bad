"""One run instead of a sweep, on tables: MLPs of two hidden layers of 32 to 512 units.

Two come with scikit-learn: `digits`, whose 64 columns are the pixels of an image, and `diabetes` with 442 rows. One is
made by it: `friedman`, 10,000 rows of Friedman's first function (1991), with noise of 1. And `cells` are the 15,625
cells of NATS-Bench, whose accuracy on CIFAR-100 is to be told from their operations.

Each is split anew for every seed: 60 % train, 20 % choose the learning rates, 20 % tell. The evolved run begins with 32
units and has `evolution: auto` and an early end (`TRAINING`), the same for all tables and budgets. A budget is counted
in steps of the network with 128 units. Printed are accuracy in percent, or RMSE.

    python benchmarks/tabular.py --data nats_bench.csv --threads 1 --runs tabular.jsonl
    python benchmarks/tabular.py --data nats_bench.csv --summary --runs tabular.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import picture, summary
from family import Store, Workload, family_arguments, sweep
from nats_space import OPERATIONS, table
from search_tabular import Table, split
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from sklearn.metrics import mean_squared_error
from timing import write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import Evolver
from evolve.data import TensorBatches

TABLES = ("digits", "diabetes", "friedman", "cells")
WIDTHS = (32, 64, 128, 256, 512)
RATES = (1e-2, 3e-3, 1e-3)
BUDGETS = (250.0, 500.0, 1000.0, 2000.0, 4000.0)
SHORTER = (62.5, 125.0)  # for fixed members and evolved runs in seconds
BATCH = 128
TRAINING = {"ema": "auto", "patience": 0.4, "keep_best": True}  # of evolved runs: an early end, by what is told
Split = Callable[[int], Table]  # of a seed


@cache
def rows(name: str, seed: int, path: Path) -> Table:
    """Returns a table, split with a seed; `path` is the file of the cells."""
    if name == "digits":
        return split(*load_digits(return_X_y=True), 10, seed)
    if name == "cells":
        found = table(str(path), "cifar100")
        x = np.array([[number == each for each in code for number in range(len(OPERATIONS))] for code in found])
        return split(x, np.array(list(found.values())), 0, seed)
    made = load_diabetes(return_X_y=True) if name == "diabetes" else make_friedman1(10_000, noise=1.0, random_state=0)
    return split(*made, 0, seed)


def loss(of: Split, model: nn.Module, batch: Any) -> Tensor:
    """Returns the cross-entropy, or the squared error, of a batch."""
    inputs, targets = batch
    return (F.cross_entropy if of(0).classes else F.mse_loss)(model(inputs), targets)


def batches(of: Split, seed: int) -> Iterator[Any]:
    """Yields training batches without end."""
    data, epoch = training(of, seed), 0
    while True:
        yield from data.epoch(epoch)
        epoch += 1


def training(of: Split, seed: int) -> TensorBatches:
    """Returns the training rows of a seed's split, shuffled."""
    return TensorBatches(*of(seed).tensors("train"), BATCH, shuffle=True, seed=seed)


@torch.no_grad()
def scores(of: Split, seed: int, model: nn.Module) -> dict[str, float]:
    """Returns accuracy in percent, or RMSE, on the rows that choose and on those that tell."""
    data: Table = of(seed)
    found = {}
    for part in ("val", "test"):
        inputs, _ = data.tensors(part)
        outputs, truth = model.eval()(inputs).numpy(), data.parts[part][1]
        if data.classes:
            found[part] = float(100 * np.mean(outputs.argmax(1) == truth))
        else:
            found[part] = float(data.unit * mean_squared_error(truth, outputs[:, 0]) ** 0.5)
    return found


def flops(model: nn.Module) -> int:
    """Returns the FLOPs of a training step: three forward passes, 2 a multiplication."""
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    return 3 * BATCH * 2 * weights


def size(model: nn.Module) -> str:
    """Returns the widest member that is no wider."""
    width = next(layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear))
    return f"w{max(w for w in WIDTHS if w <= width)}"


def evolver(of: Split, model: nn.Module, seed: int, more: dict[str, Any]) -> Evolver:
    """Returns the evolver of a network."""
    val = TensorBatches(*of(seed).tensors("val"), 500, shuffle=False)
    task = "classification" if of(seed).classes else "regression"
    return Evolver(model, training(of, seed), val, task=task, **more)


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Returns AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)


def workload(name: str, path: Path) -> Workload:
    """Returns the family on a table."""
    of = partial(rows, name, path=path)
    return Workload(
        name,
        [f"w{width}" for width in WIDTHS],
        RATES,
        BUDGETS,
        "w128",
        lambda member: of(0).network(*2 * (int(member.removeprefix("w")),)),
        optimizer,
        partial(batches, of),
        partial(loss, of),
        flops,
        size,
        partial(scores, of),
        partial(evolver, of),
        shorter=SHORTER,
        better="max" if of(0).classes else "min",
        training={**TRAINING, "monitor": {"metric": "val_accuracy" if of(0).classes else "val_loss"}},
    )


def main() -> None:
    parser = family_arguments(__doc__, "tabular", repetitions=5)
    parser.add_argument("--data", type=Path, required=True, help="the CSV file of NATS-Bench")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    cases, works = [], []
    for name in TABLES:
        if chosen.only in name:
            work = workload(name, chosen.data)
            store = Store(chosen.runs, work.better)
            if not chosen.summary:
                sweep(work, store, chosen.repetitions)
            cases += summary(work, store)
            works.append((work, store))
    write_json(chosen.json, "tabular", cases)
    if chosen.picture:
        picture(works, chosen.picture, "accuracy, %, or RMSE")


if __name__ == "__main__":
    main()
