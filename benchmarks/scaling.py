"""Time of analysis and of mutations against depth: ResNet-like nets of 10 to 1,000 blocks.

The blocks have few channels, so that hardly any of the time is arithmetic. The slope is that of a line through the
logarithms of seconds and blocks; 1 is linear growth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from structure import mutated, with_momentum
from timing import arguments, machine, seconds, spread, taking_turns, told, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.structure.analysis import Analysis
from evolve.structure.inputs import as_inputs

BLOCKS = (10, 30, 100, 300, 1000)
CHANNELS = 4
CLASSES = 10
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "scaling.png"


class Block(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.norm2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def net(blocks: int) -> nn.Module:
    """Returns a net with so many blocks; all of them share the channels of the shortcut."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
    body = nn.Sequential(*(Block() for _ in range(blocks)))
    return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)).eval()


def measure(blocks: int, repetitions: int, only: str) -> dict[str, dict[str, float]]:
    """Returns the spread of the CPU seconds of each arm whose name contains `only`."""
    model, image = net(blocks), torch.randn(1, 3, 8, 8)
    inputs, optimizer = as_inputs(model, image), with_momentum(model)

    def mutation(operator: str, site: str, **options: Any) -> Callable[[], Any]:
        return lambda: mutated(model, optimizer, image, operator, site, options)

    every = {
        "analysis": lambda: seconds(lambda: Analysis(model, inputs)),
        "widen inside one block": mutation("widen", f"1.{blocks // 2}.conv1"),
        "widen the shortcut of all": mutation("widen", "0"),
        "narrow everything": mutation("narrow", "*", factor=0.5),
        "deepen behind one block": mutation("deepen", f"1.{blocks // 2}"),
    }
    arms = {name: arm for name, arm in every.items() if only in name}
    rounds = taking_turns(arms, repetitions)
    return {arm: spread([took[arm].cpu for took in rounds]) for arm in arms}


def slope(blocks: list[int], took: list[float]) -> float:
    """Returns the exponent of growth: the slope of log(seconds) against log(blocks)."""
    return statistics.linear_regression([math.log(b) for b in blocks], [math.log(t) for t in took]).slope


def draw(found: dict[int, dict[str, dict[str, float]]], slopes: dict[str, float]) -> None:
    """Draws seconds against blocks on two logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    blocks = list(found)
    for (arm, exponent), marker in zip(slopes.items(), "osv^D", strict=False):
        axes.plot(
            blocks, [found[b][arm]["median"] for b in blocks], marker=marker, label=f"{arm} (slope {exponent:.2f})"
        )
    least = min(figures["median"] for figures in found[blocks[0]].values())
    axes.plot(blocks, [0.6 * least * b / blocks[0] for b in blocks], color="grey", linestyle=":", label="linear growth")
    axes.set(xscale="log", yscale="log", xlabel="residual blocks", ylabel="CPU seconds, one thread")
    axes.set_xticks(blocks, labels=[f"{b:,}" for b in blocks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    print(f"plot: {PICTURE.relative_to(Path.cwd()) if PICTURE.is_relative_to(Path.cwd()) else PICTURE}")


def main() -> None:
    """Measures every depth, prints the seconds and the slopes, and draws them."""
    options = arguments(__doc__.splitlines()[0], repetitions=3).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    found: dict[int, dict[str, dict[str, float]]] = {}
    for blocks in BLOCKS:
        found[blocks] = measure(blocks, options.repetitions, options.only)
        print(f"{blocks} blocks")
        for arm, figures in found[blocks].items():
            print(f"  {arm:25} {told(figures)} s", flush=True)
    slopes = {arm: slope(list(found), [found[b][arm]["median"] for b in found]) for arm in found[BLOCKS[0]]}
    for arm, exponent in slopes.items():
        last = slope(list(BLOCKS[-2:]), [found[b][arm]["median"] for b in BLOCKS[-2:]])
        print(f"{arm:27} slope {exponent:.2f}, from {BLOCKS[-2]} to {BLOCKS[-1]} blocks {last:.2f}")
    draw(found, slopes)
    write_json(options.json, "scaling", [{"blocks": blocks, **figures} for blocks, figures in found.items()])


if __name__ == "__main__":
    main()
