"""One run instead of a sweep, on CIFAR-10: small convolutional networks of 8 to 24 channels, or of two layers a stage.

The evolved run begins with 8 channels and has `evolution: auto`, and nothing else that is chosen for a budget. A budget
is what so many epochs of `w16d1` cost in FLOPs. Printed are test accuracies in percent; the held-out training images
choose the learning rates. `growth_cycle.py` is the same family under one cycle of the learning rate, with growths that
are written down beforehand.

    python benchmarks/growth.py --data cifar10.zip --threads 1 --runs growth.jsonl
    python benchmarks/growth.py --data cifar10.zip --summary --runs growth.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from cifar import BATCH, Data, accuracy, add_data, endless, load, network, sample_flops
from envelope import picture, summary
from family import Store, Workload, family_arguments, sweep
from timing import write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import Evolver

FAMILY = {"w8d1": (8, 1), "w12d1": (12, 1), "w16d1": (16, 1), "w24d1": (24, 1), "w8d2": (8, 2)}
RATES = (0.05, 0.025, 0.1)
EPOCHS = (1.0, 2.0, 4.0, 8.0, 16.0)
SHORTER = (0.25, 0.5)  # for fixed members and evolved runs in seconds
IMAGES = 10_000
DECIDE = 500  # held-out images that the evolved run looks at in mid-training

images = cache(load)


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Returns the cross-entropy of a batch."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs.to(memory_format=torch.channels_last)), targets)


def batches(data: Data, seed: int) -> Iterator[Any]:
    """Yields training batches without end."""
    yield from endless(data.batches(seed))


def make(member: str) -> nn.Module:
    """Returns a new network."""
    return network(*FAMILY[member]).to(memory_format=torch.channels_last)


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Returns SGD."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def scores(data: Data, seed: int, model: nn.Module) -> dict[str, float]:
    """Returns the accuracy on the held-out training images, which decides, and on the test images, which tells."""
    return {name: accuracy(model, data.held_out(name), bf16=False) for name in ("val", "test")}


def size(model: nn.Module) -> str:
    """Returns the widest member of one layer a stage that is no wider."""
    width = next(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    return f"w{max(w for w, depth in FAMILY.values() if w <= width and depth == 1)}d1"


def flops(model: nn.Module) -> int:
    """Returns the FLOPs of a training step."""
    return BATCH * sample_flops(model)


def evolver(data: Data, model: nn.Module, seed: int, more: dict[str, Any]) -> Evolver:
    """Returns the evolver of a network."""
    training = more["training"].model_copy(update={"channels_last": True})
    return Evolver(model, data.batches(seed), data.some_val(DECIDE), **{**more, "training": training})


def workload(data: Data) -> Workload:
    """Returns the family and its data."""
    epoch = IMAGES // BATCH
    return Workload(
        "growth",
        list(FAMILY),
        RATES,
        [epochs * epoch for epochs in EPOCHS],
        "w16d1",
        make,
        optimizer,
        partial(batches, data),
        loss,
        flops,
        size,
        partial(scores, data),
        partial(evolver, data),
        better="max",
        shorter=[epochs * epoch for epochs in SHORTER],
        near=1.5,
    )


def main() -> None:
    parser = add_data(family_arguments(__doc__, "growth", repetitions=3))
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    work, store = workload(images(chosen.data, IMAGES)), Store(chosen.runs, "max")
    if not chosen.summary:
        sweep(work, store, chosen.repetitions)
    write_json(chosen.json, "growth", summary(work, store))
    if chosen.picture:
        picture([(work, store)], chosen.picture, "test accuracy, %")


if __name__ == "__main__":
    main()
