"""Children with inherited weights against the same children from scratch: steps to the parent's accuracy.

A parent is trained, at a constant learning rate. Each child is the parent after one mutation; its rival has the same
architecture with fresh weights and is trained at several learning rates, of which the quickest counts (the others are
given up when they have had as many steps). Both are looked at every ten steps, on validation images, until they are as
accurate as the parent was.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from cifar import Data, accuracy, add_data, endless, load, make_optimizer, network, step
from timing import arguments, spread, told, write_json
from torch import nn

from evolve import mutate

LOOK = 10
SEEN = 2_000
RATES = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Child:
    """A mutation of the parent."""

    name: str
    operator: str
    site: str
    options: dict[str, Any] = field(default_factory=dict)


CHILDREN = [
    Child("widen, everything x2", "widen", "*"),
    Child("widen, one layer x2", "widen", "4"),
    Child("deepen", "deepen", "4:7"),
    Child("residual", "residual", "4:7"),
    Child("kernel of 5", "kernel", "4"),
]


def fresh(model: nn.Module) -> nn.Module:
    """Returns a copy of the architecture with weights as PyTorch draws them."""
    rival = copy.deepcopy(model)
    for module in rival.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return rival


def climb(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, rate: float, seed: int, goal: float, most: int
) -> int:
    """Trains until the validation accuracy is at `goal`; returns the steps, `most` where it never was."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.to(memory_format=torch.channels_last)
    for number, (inputs, targets) in enumerate(endless(data.batches(seed)), start=1):
        step(model.train(), optimizer, inputs, targets)
        if number >= most or (number % LOOK == 0 and accuracy(model, data.some_val(SEEN)) >= goal):
            return number
    raise AssertionError("the batches have no end")


def family(data: Data, seed: int, steps: int, rate: float, children: list[Child]) -> list[dict[str, Any]]:
    """Trains a parent and returns, for each child, the steps that it and its rivals took."""
    torch.manual_seed(seed)
    parent = network(8).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(parent)
    climb(parent, optimizer, data, rate, seed, goal=101.0, most=steps)
    goal = accuracy(parent, data.some_val(SEEN))
    found = []
    for child in children:
        heir, carried = copy.deepcopy((parent, optimizer))
        probe = data.held_out("val").example(8)
        mutate(
            heir, child.operator, site=child.site, optimizer=carried, example_inputs=probe, strict=True, **child.options
        )
        took = climb(heir, carried, data, rate, seed + 1000, goal, steps)
        scratch = 4 * steps
        for each in RATES:
            rival = fresh(heir)
            scratch = climb(rival, make_optimizer(rival), data, each, seed + 1000, goal, scratch)
        found.append({"child": child.name, "parent": goal, "inherited": took, "scratch": scratch})
        print(f"seed {seed}, {child.name}: parent {goal:.1f} %, inherited {took}, scratch {scratch}", flush=True)
    return found


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="of the parent (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="of parent and heirs (%(default)s)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    data = load(chosen.data, chosen.images)
    children = [child for child in CHILDREN if chosen.only in child.name]
    runs = [family(data, seed, chosen.steps, chosen.lr, children) for seed in range(chosen.repetitions)]
    cases = []
    for number, child in enumerate(children):
        of_child = [run[number] for run in runs]
        ratio = spread([one["scratch"] / one["inherited"] for one in of_child])
        cases.append({"name": child.name, "ratio": ratio, "runs": of_child})
        print(f"{child.name:22} scratch / inherited: {told(ratio)} steps")
    write_json(chosen.json, "inherit", cases)


if __name__ == "__main__":
    main()
