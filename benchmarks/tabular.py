"""One run instead of a sweep, on tables that come with scikit-learn: MLPs of two hidden layers of 8 to 128 units.

Each table is split anew for every seed: 60 % train, 20 % choose the learning rates, 20 % tell. The evolved run begins
with 8 units and has `evolution: auto`, and nothing else that is chosen for a table or a budget. A budget is counted in
steps of the network with 32 units. Printed are accuracy in percent, or RMSE.

    python benchmarks/tabular.py --threads 1 --runs tabular.jsonl
    python benchmarks/tabular.py --summary --runs tabular.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from envelope import picture, summary
from family import Store, Workload, family_arguments, sweep
from search_tabular import Table, table
from sklearn.metrics import mean_squared_error
from timing import write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import Evolver
from evolve.data import TensorBatches

TABLES = ("digits", "breast_cancer", "wine", "diabetes")
WIDTHS = (8, 16, 32, 64, 128)
RATES = (3e-3, 1e-3, 1e-2)
BUDGETS = (100.0, 200.0, 400.0, 800.0, 1600.0)
BATCH = 32

split = cache(table)


def loss(name: str, model: nn.Module, batch: Any) -> Tensor:
    """Returns the cross-entropy, or the squared error, of a batch."""
    inputs, targets = batch
    return (F.cross_entropy if split(name, 0).classes else F.mse_loss)(model(inputs), targets)


def batches(name: str, seed: int) -> Iterator[Any]:
    """Yields training batches without end."""
    data, epoch = training(name, seed), 0
    while True:
        yield from data.epoch(epoch)
        epoch += 1


def training(name: str, seed: int) -> TensorBatches:
    """Returns the training rows of a seed's split, shuffled."""
    return TensorBatches(*split(name, seed).tensors("train"), BATCH, shuffle=True, seed=seed)


@torch.no_grad()
def scores(name: str, seed: int, model: nn.Module) -> dict[str, float]:
    """Returns accuracy in percent, or RMSE, on the rows that choose and on those that tell."""
    data: Table = split(name, seed)
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


def evolver(name: str, model: nn.Module, seed: int, more: dict[str, Any]) -> Evolver:
    """Returns the evolver of a network."""
    val = TensorBatches(*split(name, seed).tensors("val"), 500, shuffle=False)
    task = "classification" if split(name, seed).classes else "regression"
    return Evolver(model, training(name, seed), val, task=task, **more)


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Returns AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)


def workload(name: str) -> Workload:
    """Returns the family on a table."""
    return Workload(
        name,
        [f"w{width}" for width in WIDTHS],
        RATES,
        BUDGETS,
        "w32",
        lambda member: split(name, 0).network(*2 * (int(member.removeprefix("w")),)),
        optimizer,
        partial(batches, name),
        partial(loss, name),
        flops,
        size,
        partial(scores, name),
        partial(evolver, name),
        better="max" if split(name, 0).classes else "min",
    )


def main() -> None:
    parser = family_arguments(__doc__, "tabular", repetitions=5)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    cases, works = [], []
    for name in TABLES:
        if chosen.only in name:
            work = workload(name)
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
