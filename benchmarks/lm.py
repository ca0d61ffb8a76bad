"""One run instead of a sweep, on a language model over bytes: the sources of Python's standard library.

The family is a GPT of width 64 over 64 bytes, of 1 to 8 layers, each trained for each budget at three learning rates.
The evolved run begins with one layer and has `evolution: auto`, and nothing else that is chosen for a budget.

    python benchmarks/lm.py --threads 1 --runs lm.jsonl
    python benchmarks/lm.py --summary --runs lm.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from envelope import picture, summary
from family import Store, Workload, family_arguments, sweep
from timing import write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import Evolver
from evolve.data import datasets
from evolve.evolver.output import flops_per_sample
from evolve.models.gpt import GPT

WIDTH, HEADS, CONTEXT, BATCH = 64, 4, 64, 16
DEPTHS = (1, 2, 3, 4, 6, 8)
RATES = (2.5e-3, 1.25e-3, 5e-3)
BUDGETS = (200.0, 400.0, 800.0, 1600.0, 3200.0)
SHORTER = (50.0, 100.0)  # for fixed members and evolved runs in seconds
HELD_OUT = 512  # windows that decide, and as many that tell


def make(member: str) -> nn.Module:
    """Returns a new network, `d2` of two layers."""
    return GPT(width=WIDTH, heads=HEADS, context=CONTEXT, depth=int(member.removeprefix("d")))


def flops(model: nn.Module) -> int:
    """Returns the FLOPs of a training step: three forward passes, 2 a multiplication."""
    return 3 * BATCH * flops_per_sample(model, torch.zeros(BATCH, CONTEXT, dtype=torch.long), needed=True)


@cache
def source(seed: int) -> Any:
    """Returns the data, shuffled with a seed."""
    return datasets.get("stdlib_source")(
        batch_size=BATCH, seed=seed, context=CONTEXT, val_fraction=0.05, val_samples=2 * HELD_OUT
    )


def batches(seed: int) -> Iterator[Any]:
    """Yields training batches without end."""
    epoch = 0
    while True:
        yield from source(seed).train.epoch(epoch)
        epoch += 1


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Returns the mean cross-entropy of the next byte in nats."""
    return F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())


@torch.no_grad()
def scores(seed: int, model: nn.Module) -> dict[str, float]:
    """Returns the loss on the held-out windows, the same for all seeds: every other batch decides, the rest tell."""
    model.eval()
    found = [float(loss(model, batch)) for batch in source(0).val.epoch(0)]
    return {"val": sum(found[::2]) / len(found[::2]), "test": sum(found[1::2]) / len(found[1::2])}


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Returns AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)


def size(model: nn.Module) -> str:
    """Returns the member with as many layers."""
    return f"d{len(model.blocks)}"


def evolver(model: nn.Module, seed: int, more: dict[str, Any]) -> Evolver:
    """Returns the evolver of a network."""
    data = source(seed)
    return Evolver(model, data.train, data.val, task="language_modeling", **more)


def workload() -> Workload:
    """Returns the family and its data."""
    return Workload(
        "lm",
        [f"d{depth}" for depth in DEPTHS],
        RATES,
        BUDGETS,
        "d6",
        make,
        optimizer,
        batches,
        loss,
        flops,
        size,
        scores,
        evolver,
        shorter=SHORTER,
        near=0.03,
    )


def main() -> None:
    parser = family_arguments(__doc__, "lm", repetitions=3)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    work, store = workload(), Store(chosen.runs)
    if not chosen.summary:
        sweep(work, store, chosen.repetitions)
    write_json(chosen.json, "lm", summary(work, store))
    if chosen.picture:
        picture([(work, store)], chosen.picture, "loss on held-out bytes, nats")


if __name__ == "__main__":
    main()
