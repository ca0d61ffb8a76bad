"""Causal models x every operator x every site: does an earlier output depend on a later position after training?

    python benchmarks/causality.py [model ...]

Each mutation is made on a new copy of the model, which is then trained for five steps. Whether it looks ahead is
measured by changing the inputs from every position on, by code that shares nothing with the library.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import evolve
from evolve.operators import operators

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.causal import CAUSAL, Causal

OPTIONS: dict[str, list[dict[str, object]]] = {
    "attention": [{}, {"kind": "self"}],
    "branch": [{}, {"kind": "separable"}],
    "deepen": [{}, {"block": "bottleneck"}, {"block": "depthwise"}, {"block": "transformer"}],
    "residual": [{}, {"init": "random"}],
    "remove": [{"preserves": "no"}],
}


def main() -> None:
    """Prints a line for each model and operator."""
    logging.getLogger("evolve").setLevel(logging.ERROR)
    total: Counter[str] = Counter()
    names = sys.argv[1:] or list(CAUSAL)
    print(f"{'model':<16}{'operator':<16}{'sites':>7}{'applied':>9}{'refused':>9}{'leaks':>7}{'seconds':>9}")
    for name in names:
        for operator in sorted(operators.names()):
            started, counts = time.perf_counter(), Counter[str]()
            for options in OPTIONS.get(operator, [{}]):
                counts += sweep(CAUSAL[name], operator, options)
            total += counts
            seconds = time.perf_counter() - started
            row = f"{counts['sites']:>7}{counts['applied']:>9}{counts['refused']:>9}{counts['leaks']:>7}{seconds:>9.1f}"
            print(f"{name:<16}{operator:<16}{row}", flush=True)
    print(f"all: {total['applied']} applied, {total['refused']} refused, {total['leaks']} look ahead")


def sweep(subject: Causal, operator: str, options: dict[str, object]) -> Counter[str]:
    """Tries an operator at every site of a model."""
    torch.manual_seed(0)
    model, x = subject.build(), subject.inputs()
    counts: Counter[str] = Counter()
    for site in evolve.sites(model, operator, example_inputs=x, **options):
        counts["sites"] += 1
        child = copy.deepcopy(model)
        optimizer = torch.optim.Adam(child.parameters(), lr=1e-2)
        ok, message = evolve.mutate(
            child, operator, site=site, optimizer=optimizer, example_inputs=x, seed=1, loss=loss_of, **options
        )
        if not ok:
            counts["refused"] += 1
            print(f"    {operator} at {site}: {message}")
            continue
        counts["applied"] += 1
        train(child, optimizer, x)
        leak = subject.ahead(child, x)
        if leak:
            counts["leaks"] += 1
            print(f"    LOOKS AHEAD by {leak:g}: {operator} {options} at {site}")
    return counts


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    """Five steps on random targets."""
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        optimizer.step()


def loss_of(out: object) -> torch.Tensor:
    """A loss that weighs every output differently."""
    logits = out if isinstance(out, torch.Tensor) else out.logits  # type: ignore[attr-defined]
    flat = logits.flatten()
    return (flat - torch.linspace(-2, 2, len(flat))).square().mean()


if __name__ == "__main__":
    main()
