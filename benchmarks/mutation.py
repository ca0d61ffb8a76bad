"""Time of mutations: beside Torch-Pruning (see `structure.py`), and over that of one training step of the same model.

For the latter, each repetition takes fresh copies of the model with an optimizer that has state, and times a training
step and a mutation one after the other, in turns which comes first. The mutation, `residual`, is verified, as always,
on the eight samples that the Evolver takes for it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structure
import torch
from timing import Took, arguments, machine, ratios, seconds, spread, told, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import build_model, mutate

PROBE = 8  # samples, as in `EvolutionConfig`
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=1e-3),
}


@dataclass(frozen=True)
class Case:
    """A model, and the batch of one of its training steps."""

    name: str
    model: Callable[[], nn.Module]
    batch: tuple[int, ...]
    classes: int
    site: str | None


CASES = [
    Case("simple_cnn, 128 of 32x32", partial(build_model, "simple_cnn"), (128, 3, 32, 32), 10, "features"),
    Case(
        "resnet50, 32 of 64x64", partial(build_model, "torchvision:resnet50", weights=None), (32, 3, 64, 64), 1000, None
    ),
    Case(
        "resnet50, 32 of 224x224",
        partial(build_model, "torchvision:resnet50", weights=None),
        (32, 3, 224, 224),
        1000,
        None,
    ),
]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """Makes one ordinary training step."""
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    loss.item()


def measure(case: Case, optimizer_name: str, repetitions: int) -> tuple[dict[str, Any], list[str]]:
    """Times the pairs of one case; returns its figures and how to tell them."""
    torch.manual_seed(0)
    model = case.model().train()
    inputs, targets = torch.randn(case.batch), torch.randint(case.classes, case.batch[:1])
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    train_step(model, optimizer, inputs, targets)  # the optimizer has state from here on, the caches are warm
    messages = set()

    def step() -> Took:
        return seconds(lambda: train_step(model, optimizer, inputs, targets))

    def mutation() -> Took:
        changed = copy.deepcopy(model)
        its_optimizer = OPTIMIZERS[optimizer_name](changed.parameters())
        its_optimizer.load_state_dict(optimizer.state_dict())
        answers = []
        took = seconds(
            lambda: answers.append(
                mutate(changed, "residual", site=case.site, optimizer=its_optimizer, example_inputs=inputs[:PROBE])
            )
        )
        if not answers[0]:
            raise RuntimeError(f"{case.name}: the mutation was refused: {answers[0].message}")
        messages.add(answers[0].record.site)
        return took

    pairs = []
    for repetition in range(repetitions + 1):
        first, second = (mutation, step) if repetition % 2 else (step, mutation)
        gc.collect()
        found = {first: first(), second: second()}
        pairs.append((found[mutation], found[step]))
    pairs = pairs[1:]
    figures = {
        "site": messages.pop(),
        "mutation_ms": spread([1000 * pair[0].wall for pair in pairs]),
        "step_ms": spread([1000 * pair[1].wall for pair in pairs]),
        "ratio": ratios(pairs),
        "pairs": pairs,
    }
    lines = [f"  {clock:4} time: mutation/step {told(figures['ratio'][clock])}" for clock in Took._fields]
    return figures, [*lines, f"  ms: mutation {told(figures['mutation_ms'])}, step {told(figures['step_ms'])}"]


def main() -> None:
    """Measures every case and prints it."""
    options = arguments(__doc__.splitlines()[0], repetitions=15).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    cases: dict[str, structure.Measure] = dict(structure.CASES)
    for case in CASES:
        cases |= {f"step, {case.name}, {name}": partial(measure, case, name) for name in OPTIMIZERS}
    found = []
    for name, measured in cases.items():
        if options.only in name:
            print(name, flush=True)
            figures, lines = measured(options.repetitions)
            found.append({"case": name, **figures})
            print("\n".join(lines), flush=True)
    write_json(options.json, "mutation", found)


if __name__ == "__main__":
    main()
