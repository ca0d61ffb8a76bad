"""Does evolution pay on tables? A search with inherited weights beside boosted trees and a tuned MLP.

Three tables that come with scikit-learn, each split anew for every seed: 60 % train, 20 % decide, 20 % judge. The arms
have the same CPU seconds, and each chooses by the loss on the rows that decide:

- `evolution`: `evolve.search` out of a small MLP, children inheriting weights;
- `mlp`: random search over width, depth, learning rate, weight decay and epochs of an MLP;
- `boosting`: random search over the settings of HistGradientBoosting.

No arm is trained once more on the rows that decide. Printed is accuracy in percent or RMSE on the rows that judge.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from search_arms import Clock
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from timing import arguments, write_json
from torch import Tensor, nn
from torch.nn import functional as F

import evolve
from evolve import TrainingConfig
from evolve.models.mlp import mlp
from evolve.population.events import Evaluated, SearchEvent
from evolve.training.optim import OptimizerConfig

TABLES = {
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
    "diabetes": load_diabetes,
}
BATCH = 32
OPERATORS = ["widen", "deepen", "residual", "dropout", "narrow"]
FIRST = 16  # hidden units of the network that all others grow out of
EPOCHS = 10  # of a child
RATE, DECAY = 3e-3, 1e-2  # of a child; its learning rate falls to zero by half a cosine
START, POPULATION = 2.0, 5


@dataclass(frozen=True)
class Table:
    """A table, split and brought to mean 0 and standard deviation 1 by its training rows.

    Attributes:
        parts: Inputs and targets of `train`, `val` and `test`.
        classes: How many there are; 0 for numbers.
        unit: Standard deviation of the targets, by which an error is multiplied.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: int
    unit: float

    def tensors(self, part: str) -> tuple[Tensor, Tensor]:
        """Returns inputs (N, columns) and targets: (N,) of classes, or (N, 1) of numbers."""
        x, y = self.parts[part]
        return torch.from_numpy(x), torch.from_numpy(y if self.classes else y[:, None])

    def network(self, *hidden: int) -> nn.Sequential:
        """Returns an MLP for this table."""
        return mlp(self.parts["train"][0].shape[1], hidden, self.classes or 1)

    def score(self, predicted: np.ndarray) -> float:
        """Returns accuracy in percent, or RMSE, of predictions for the rows that judge: classes, or numbers."""
        y = self.parts["test"][1]
        if self.classes:
            return float(100 * (predicted == y).mean())
        return self.unit * mean_squared_error(y, predicted) ** 0.5


def table(name: str, seed: int) -> Table:
    """Loads and splits a table."""
    x, y = TABLES[name](return_X_y=True)
    return split(x, y, 0 if name == "diabetes" else len(set(y)), seed)


def split(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> Table:
    """Splits rows, and brings them to scale.

    Args:
        x: Columns, (N, columns).
        y: What is to be told, (N,).
        classes: How many there are; 0 for numbers.
        seed: Of the split.
    """
    rest, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=seed, stratify=y if classes else None)
    train, val = train_test_split(rest, test_size=0.25, random_state=seed, stratify=y[rest] if classes else None)
    x = StandardScaler().fit(x[train]).transform(x).astype(np.float32)
    mean, unit = (0.0, 1.0) if classes else (y[train].mean(), y[train].std())
    y = y.astype(np.int64) if classes else ((y - mean) / unit).astype(np.float32)
    return Table({"train": (x[train], y[train]), "val": (x[val], y[val]), "test": (x[test], y[test])}, classes, unit)


@dataclass(frozen=True)
class Outcome:
    """What an arm came to: its score on the rows that judge, CPU seconds, models that were trained, what was chosen."""

    score: float
    cpu: float
    evaluations: int
    what: str


@torch.no_grad()
def score(model: nn.Module, data: Table) -> float:
    """Returns the score of a network on the rows that judge."""
    outputs = model.eval()(data.tensors("test")[0])
    return data.score((outputs.argmax(1) if data.classes else outputs[:, 0]).numpy())


def evolution(data: Table, budget: float, seed: int) -> Outcome:
    """Evolves a small MLP for the whole budget."""
    clock = Clock()
    torch.manual_seed(seed)
    model = data.network(FIRST)

    def stop(event: SearchEvent) -> None:
        if isinstance(event, Evaluated) and clock.read() >= budget:
            event.search.stop()

    with tempfile.TemporaryDirectory() as folder:
        found = evolve.search(
            model,
            (data.tensors("train"), data.tensors("val")),
            operators=OPERATORS,
            budget=1_000_000,  # the clock stops it
            task="classification" if data.classes else "regression",
            objectives=["val_loss"],
            again=0,
            best=1,
            start=START,
            population=POPULATION,
            training=TrainingConfig(epochs=EPOCHS, device="cpu", seed=seed),
            optimizer=OptimizerConfig(name="AdamW", options={"lr": RATE, "weight_decay": DECAY}),
            batch_size=BATCH,
            output=folder,
            overwrite=True,
            callbacks=[stop],
        )
        if clock.read() < budget:
            raise KeyboardInterrupt  # a signal ended the search; a run that is cut short does not count
        model = evolve.load(found.folder, model)
    what = " ".join(f"{name} x{count}" for name, count in (found.best[0].code or {}).items())
    return Outcome(score(model, data), clock.read(), found.evaluations, what)


def tuned_mlp(data: Table, budget: float, seed: int) -> Outcome:
    """Trains random MLPs until the budget is spent."""

    def draw(chance: random.Random) -> tuple[nn.Module, float, str]:
        width, depth = round(16 * 2 ** chance.uniform(0, 4)), chance.randint(1, 3)
        lr, decay = 10 ** chance.uniform(-3, -1.5), 10 ** chance.uniform(-4, -0.5)
        epochs = chance.choice((10, 20, 40, 80))
        model = data.network(*[width] * depth)
        return model, fit(model, data, epochs, lr, decay), f"{width}x{depth} lr {lr:.1g} {epochs} epochs"

    return searched(draw, lambda model: score(model, data), budget, seed)


def fit(model: nn.Module, data: Table, epochs: int, lr: float, decay: float) -> float:
    """Trains a network with AdamW and half a cosine; returns its loss on the rows that decide."""
    inputs, targets = data.tensors("train")
    loss = F.cross_entropy if data.classes else F.mse_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(targets) // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss(model.train()(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        inputs, targets = data.tensors("val")
        return loss(model.eval()(inputs), targets).item()


def boosting(data: Table, budget: float, seed: int) -> Outcome:
    """Trains boosted trees of random settings until the budget is spent."""
    (x, y), (x_val, y_val) = data.parts["train"], data.parts["val"]

    def draw(chance: random.Random) -> tuple[Any, float, str]:
        options = {
            "learning_rate": 10 ** chance.uniform(-2, -0.5),
            "max_iter": chance.choice((50, 100, 200)),
            "max_leaf_nodes": chance.choice((4, 8, 15, 31)),
            "min_samples_leaf": chance.choice((5, 10, 20, 40)),
            "l2_regularization": 10 ** chance.uniform(-3, 1),
            "max_features": chance.choice((0.3, 0.6, 1.0)),
        }
        cls = HistGradientBoostingClassifier if data.classes else HistGradientBoostingRegressor
        model = cls(**options, early_stopping=False, random_state=chance.randrange(2**31)).fit(x, y)
        if data.classes:
            loss = log_loss(y_val, model.predict_proba(x_val), labels=model.classes_)
        else:
            loss = mean_squared_error(y_val, model.predict(x_val))
        return model, loss, f"{options['max_iter']} trees of {options['max_leaf_nodes']} leaves"

    return searched(draw, lambda model: data.score(model.predict(data.parts["test"][0])), budget, seed)


def searched(
    draw: Callable[[random.Random], tuple[Any, float, str]], judge: Callable[[Any], float], budget: float, seed: int
) -> Outcome:
    """Draws and trains models until the budget is spent; returns the one with the least loss."""
    clock, chance = Clock(), random.Random(seed)
    torch.manual_seed(seed)
    found = []
    while clock.read() < budget:
        found.append(draw(chance))
    model, _, what = min(found, key=lambda each: each[1])
    return Outcome(judge(model), clock.read(), len(found), what)


ARMS = {"evolution": evolution, "mlp": tuned_mlp, "boosting": boosting}


def told(outcomes: list[Outcome]) -> str:
    """Returns mean ± standard deviation of the scores."""
    values = [each.score for each in outcomes]
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def compare(name: str, budget: float, seeds: range, only: str) -> dict[str, Any]:
    """Runs the arms in turns on one table, and prints a line for each."""
    found: dict[str, list[Outcome]] = {arm: [] for arm in ARMS if only in arm}
    for seed in seeds:
        data = table(name, seed)
        for arm, of in found.items():
            of.append(ARMS[arm](data, budget, seed))
    unit = "RMSE" if name == "diabetes" else "accuracy, %"
    for arm, of in found.items():
        cpu, models = (statistics.fmean(getattr(each, key) for each in of) for key in ("cpu", "evaluations"))
        print(f"| {name}, {unit} | {arm} | {told(of)} | {cpu:.1f} | {models:.0f} |", flush=True)
    return {"table": name, "arms": {arm: [vars(each) for each in of] for arm, of in found.items()}}


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__, repetitions=5)
    parser.add_argument("--budget", type=float, default=8.0, help="CPU seconds of an arm on one split (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(chosen.first, chosen.first + chosen.repetitions)
    evolution(table("diabetes", 0), 0.1, 0)  # no clock is to see what is imported on the way
    begun = time.process_time()
    with threadpool_limits(1):  # CPU seconds of several threads buy less than those of one
        cases = [compare(name, chosen.budget, seeds, chosen.only) for name in chosen.tables]
    print(f"{time.process_time() - begun:.0f} CPU seconds in all")
    write_json(chosen.json, "search_tabular", cases)


if __name__ == "__main__":
    main()
