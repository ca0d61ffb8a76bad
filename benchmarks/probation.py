"""Probation: is a mutation that harms taken back, bit for bit, and does a useful one stay?

Every run trains on the bundled digits and meets one mutation half-way, which is judged after a quarter of the run. For
each seed there is a run without a mutation beside it. Where the mutation was taken back, both have to end the same to
the bit: weights, buffers, optimizer, average of the weights, learning rate schedule, metrics and random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timing import arguments, machine, spread, told, write_json
from torch import Tensor

from evolve import EvolutionConfig, Evolver, LrScheduleConfig, OptimizerConfig, TrainingConfig, build_model
from evolve.data import build_data
from evolve.runtime.generators import random_state
from evolve.surgery.optimizer_names import optimizer_by_name

EPOCHS, AT, STEPS = 12, 6, 135  # three epochs of 45 steps


@dataclass(frozen=True)
class Case:
    """A mutation, and what ought to become of it.

    Attributes:
        model: Name and options of the model.
        operator: An entry of `evolution.operators`.
        stays: Whether it ought to stay.
    """

    name: str
    model: dict[str, Any]
    operator: dict[str, Any]
    stays: bool


NARROW = {"name": "mlp", "in_features": 64, "hidden": [2, 32], "num_classes": 10}
MIDDLE = {**NARROW, "hidden": [4, 32]}
RESNET = {"name": "small_resnet", "in_channels": 1, "width": 4}
CASES = [
    Case("harm: all weights drawn anew", RESNET, {"name": "shrink_perturb", "options": {"keep": 0.0}}, False),
    Case("harm: a dropout of 0.9", MIDDLE, {"name": "dropout", "sites": ["2"], "options": {"p": 0.9}}, False),
    Case("harm: one unit of four is left", MIDDLE, {"name": "narrow", "sites": ["1"], "options": {"remove": 3}}, False),
    Case(
        "use: 2 units become 32",
        NARROW,
        {"name": "widen", "sites": ["1"], "options": {"add": 30, "init": "twins"}},
        True,
    ),
    Case("use: a block behind 2 units", NARROW, {"name": "residual", "sites": ["1:4"]}, True),
    Case("no harm: all channels doubled", RESNET, {"name": "widen", "sites": ["*"]}, True),
]


def run(case: Case, seed: int, *, mutates: bool) -> Evolver:
    """Trains a model, with the mutation of a case or without one."""
    torch.manual_seed(seed)
    options = dict(case.model)
    model = build_model(options.pop("name"), **options)
    data = build_data("digits", batch_size=32, augment=False, seed=seed, options={})
    evolution: dict[str, Any] = {"probation": {"steps": STEPS}}
    if mutates:
        evolution |= {"schedule": {"name": "at", "options": {"epochs": [AT]}}, "operators": [case.operator]}
    evolver = Evolver(
        model,
        data.train,
        data.val,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.05, "momentum": 0.9}),
        lr_schedule=LrScheduleConfig(name="CosineAnnealingLR"),
        training=TrainingConfig(epochs=EPOCHS, device="cpu", ema=0.9, seed=seed),
        evolution=EvolutionConfig.model_validate(evolution),
        progress=False,
    )
    evolver.run()
    return evolver


def digest(evolver: Evolver) -> str:
    """A hash of all that training moves."""
    state = evolver.state
    history = [{k: v for k, v in line.items() if k not in ("seconds", "flops")} for line in evolver.history]
    optimizer = optimizer_by_name(state.model, state.optimizer)
    assert state.ema is not None
    assert state.scheduler is not None
    found = [
        state.model.state_dict(),
        optimizer,
        state.ema.shadow,
        state.scheduler.state_dict(),
        history,
        random_state(),
    ]
    sha = hashlib.sha256()
    for leaf in _leaves(found):
        sha.update(leaf)
    return sha.hexdigest()


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield value.contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key in value:
            yield str(key).encode()
            yield from _leaves(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield repr(value).encode()


def measure(case: Case, seeds: int) -> dict[str, Any]:
    """Runs a case with and without its mutation for every seed."""
    rows = []
    for seed in range(seeds):
        without, tested = run(case, seed, mutates=False), run(case, seed, mutates=True)
        verdict = tested.lineage.records[0].verdict
        assert verdict is not None
        rows.append(
            {
                "seed": seed,
                "stayed": verdict.kept,
                "same": digest(tested) == digest(without),
                "verdict": verdict.model_dump(),
                "val_loss": tested.history[-1]["val_loss"],
                "val_loss_without": without.history[-1]["val_loss"],
            }
        )
    return {
        "case": case.name,
        "ought_to_stay": case.stays,
        "runs": seeds,
        "right": sum(row["stayed"] == case.stays for row in rows),
        "bit_for_bit": sum(row["same"] for row in rows if not row["stayed"]),
        "taken_back": sum(not row["stayed"] for row in rows),
        "loss_ratio": spread([row["val_loss"] / row["val_loss_without"] for row in rows]),
        "rows": rows,
    }


def main() -> None:
    """Measures every case and prints a line for each."""
    options = arguments(__doc__.splitlines()[0], repetitions=10).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    found = []
    for case in CASES:
        if options.only in case.name:
            figures = measure(case, options.repetitions)
            found.append(figures)
            print(
                f"{case.name}: {figures['right']} of {figures['runs']} as it ought to be, bit for bit in "
                f"{figures['bit_for_bit']} of {figures['taken_back']} taken back; final validation loss over that of "
                f"the run without: {told(figures['loss_ratio'])}",
                flush=True,
            )
    write_json(options.json, "probation", found)


if __name__ == "__main__":
    main()
