"""Threads that mutate models of their own, while another one trains: failures, and what the process is left with.

Four threads make fifty mutations each. A fifth trains a model whose random numbers come from a generator of its own,
and is held against the same training alone, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

import evolve

OPERATORS = ("widen", "residual", "deepen", "narrow")


class Attending(nn.Module):
    """Encoder layers of PyTorch, which run fused in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, length, 16) to (N, 3)."""
        scores: Tensor = self.head(self.encoder(x).mean(1))
        return scores


def convolutional() -> nn.Module:
    """Returns a small convolutional network."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def dense() -> nn.Module:
    """Returns a small MLP."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


SUBJECTS = {
    "dense": (dense, (8, 6), "0"),
    "convolutional": (convolutional, (8, 3, 8, 8), "0.0"),
    "transformer": (Attending, (8, 6, 16), "encoder.layers.0.linear1"),
    "dense again": (dense, (8, 6), "2"),
}


def process() -> dict[str, Any]:
    """Returns what the process holds that a mutation could leave behind."""
    return {
        "global hooks": [n for n in vars(every_module) if n.startswith("_global") and getattr(every_module, n)],
        "mha fast path": torch.backends.mha.get_fastpath_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
    }


def mutations(name: str, count: int) -> Counter[str]:
    """Mutates a model and its optimizer; widens and narrows in turn, so that it does not grow without end."""
    build, shape, site = SUBJECTS[name]
    model, found = build(), Counter[str]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for turn in range(count):
        kept = turn < 8  # later ones are taken back: fifty blocks one behind another take their time
        with evolve.transaction(model, optimizer) as change:
            operator = OPERATORS[turn % len(OPERATORS)]
            result = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=inputs, seed=turn)
            found[result.status] += 1
            if result.status not in ("applied", "not_applicable"):
                print(f"{name}: {operator}: {result.message}")
            if not kept:
                change.rollback()
    return found


def training(stop: threading.Event | None, steps: int = 0) -> list[Tensor]:
    """Trains until it is told to stop, or for so many steps; returns the outputs in eval mode after each step."""
    generator = torch.Generator().manual_seed(1)
    model, outputs = Attending(), []
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):  # which draw from the generator of the process
            setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    while len(outputs) < steps if stop is None else not stop.is_set():
        inputs = torch.randn(8, 6, 16, generator=generator)
        model.train()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            outputs.append(model(inputs))
    return outputs


def main() -> None:
    """Prints the figures; exits with 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=50, help="of each thread")
    count = parser.parse_args().mutations
    sys.setswitchinterval(1e-5)  # threads take turns wherever they can
    torch.set_num_threads(1)
    before, stop, started = process(), threading.Event(), time.perf_counter()
    with ThreadPoolExecutor(len(SUBJECTS) + 1) as pool:
        trained = pool.submit(training, stop)
        running = {name: pool.submit(mutations, name, count) for name in SUBJECTS}
        try:
            found = {name: future.result() for name, future in running.items()}
        finally:
            stop.set()
        outputs = trained.result()
    seconds = time.perf_counter() - started
    for name, statuses in found.items():
        print(f"{name:14} {dict(statuses)}")
    alone = training(None, len(outputs))
    same = sum(torch.equal(one, other) for one, other in zip(outputs, alone, strict=True))
    print(f"a training beside them: {same} of {len(outputs)} steps bit for bit as alone; {seconds:.1f} s in all")
    after = process()
    failures = sum(n for some in found.values() for status, n in some.items() if status not in _ANSWERS)
    left = [key for key in before if before[key] != after[key]]
    print(f"failures: {failures} of {count * len(SUBJECTS)}; left changed in the process: {left or 'nothing'}")
    sys.exit(failures > 0 or bool(left) or same < len(outputs))


_ANSWERS = ("applied", "not_applicable")

if __name__ == "__main__":
    main()
