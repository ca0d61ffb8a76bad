"""CIFAR-10 in memory, the family of networks, and the recipe that every arm of the growth benchmarks trains with.

The training images are shuffled once; the first 5,000 are the validation images, on which every decision is made (a
learning rate, a setting of the evolution), and the next ones train. The test images are looked at by nobody else.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import Timer, Took
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from evolve.data import CropFlip, Normalise, TensorBatches

HELD_OUT = 5_000
BATCH = 64
# Without such instructions autocast is emulated, and takes far longer than float32.
BF16 = any(has is True for name, has in getattr(torch.cpu, "get_capabilities", dict)().items() if "bf16" in name)
PLAIN = Normalise(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))


@dataclass(frozen=True)
class Data:
    """Three disjoint sets of images: uint8 until they are batched."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def batches(self, seed: int) -> TensorBatches:
        """Returns the training batches: shuffled, cropped at random and mirrored."""
        return TensorBatches(*self.train, BATCH, shuffle=True, seed=seed, augment=CropFlip(), normalise=PLAIN)

    def held_out(self, name: str) -> TensorBatches:
        """Returns the batches of `val` or `test`."""
        return TensorBatches(*getattr(self, name), 500, shuffle=False, normalise=PLAIN)

    def some_val(self, count: int) -> TensorBatches:
        """Returns the first validation images, for what looks at them in mid-training."""
        return TensorBatches(self.val[0][:count], self.val[1][:count], 500, shuffle=False, normalise=PLAIN)


def load(archive: Path, images: int) -> Data:
    """Returns CIFAR-10 with `images` training images, at most 45,000.

    Args:
        archive: A zip of JPEGs, `train/<class>/<n>.jpg` and `test/<class>/<n>.jpg`.
        images: How many of the training images to train on.
    """
    cache = Path(tempfile.gettempdir()) / "evolve-cifar10.npz"  # decoded once for all benchmarks
    if not cache.exists():
        np.savez(cache, **_decode(archive))
    arrays = {name: torch.from_numpy(array) for name, array in np.load(cache).items()}
    order = torch.randperm(len(arrays["train_y"]), generator=torch.Generator().manual_seed(0))
    val, train = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + images]
    return Data(
        train=(arrays["train_x"][train], arrays["train_y"][train]),
        val=(arrays["train_x"][val], arrays["train_y"][val]),
        test=(arrays["test_x"], arrays["test_y"]),
    )


def _decode(archive: Path) -> dict[str, np.ndarray]:
    """Returns all images as (N, 3, 32, 32) of uint8, and their classes, for `train` and `test`."""
    arrays = {}
    with zipfile.ZipFile(archive) as folder:
        names = sorted(name for name in folder.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        for part in ("train", "test"):
            chosen = [name for name in names if name.split("/")[-3] == part]
            pictures = [np.asarray(Image.open(io.BytesIO(folder.read(name))).convert("RGB")) for name in chosen]
            arrays[f"{part}_x"] = np.stack(pictures).transpose(0, 3, 1, 2).copy()
            arrays[f"{part}_y"] = np.array([classes.index(name.split("/")[-2]) for name in chosen])
    return arrays


def network(width: int, depth: int = 1) -> nn.Sequential:
    """Returns a member of the family: three stages of 1x, 2x and 4x `width` channels, `depth` convolutions in each."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in range(3):
        for _ in range(depth):
            wide = width * 2**stage
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        if stage < 2:
            layers.append(nn.MaxPool2d(2))
    hidden = 8 * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * channels, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def sample_flops(model: nn.Module) -> int:
    """Returns the FLOPs of a training step on one sample: three times those of the forward pass (2 per MAC)."""
    counter = FlopCounterMode(display=False)
    training = model.training
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    model.train(training)
    return 3 * counter.get_total_flops()


def one_cycle(progress: float, peak: float, warm: float = 0.2) -> float:
    """Returns the learning rate of torch's OneCycleLR (cosine both ways) after a share of the budget."""
    low, end = peak / 25, peak / 25e4
    start, stop, share = (
        (low, peak, progress / warm) if progress < warm else (peak, end, (progress - warm) / (1 - warm))
    )
    return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Returns the optimizer of every arm; the learning rate is set before each step."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def endless(batches: TensorBatches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """Makes one step of training."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        loss = F.cross_entropy(model(inputs.to(memory_format=torch.channels_last)), targets)
    loss.backward()
    optimizer.step()


def train(
    model: nn.Module,
    data: Data,
    flops: float,
    peak: float,
    seed: int,
    event: Callable[[float, torch.optim.Optimizer], bool] | None = None,
) -> tuple[Took, int]:
    """Trains within a budget, as one would by hand: one cycle of the learning rate over all of it.

    Args:
        model: Trained in place, in channels-last; in bfloat16 autocast where the processor has it.
        data: Its training images.
        flops: The budget.
        peak: Highest learning rate.
        seed: Of the order of the images and their augmentation.
        event: Told the progress before each step; true where it changed the model.

    Returns:
        The seconds that it took, and the steps.
    """
    model.train().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model)
    batches = endless(data.batches(seed))
    price, spent, steps = sample_flops(model), 0.0, 0
    timer = Timer()
    while spent < flops:
        progress = spent / flops
        if event is not None and event(progress, optimizer):
            model.train().to(memory_format=torch.channels_last)
            price = sample_flops(model)
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(progress, peak)
        inputs, targets = next(batches)
        step(model, optimizer, inputs, targets)
        spent += price * len(targets)
        steps += 1
    return timer.read(), steps


@torch.no_grad()
def accuracy(model: nn.Module, batches: TensorBatches, bf16: bool = BF16) -> float:
    """Returns the share of right answers in percent."""
    model.eval()
    hits = 0
    for inputs, targets in batches.epoch(0):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hits += int((model(inputs.to(memory_format=torch.channels_last)).argmax(1) == targets).sum())
    return 100 * hits / batches.samples


def add_data(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the option that says where the images are."""
    parser.add_argument("--data", type=Path, required=True, help="cifar10.zip: train/<class>/*.jpg, test/<class>/*.jpg")
    return parser
