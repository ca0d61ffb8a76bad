"""gromo and evolve growing the same network: exactness, optimizer state, time of the growth, accuracy.

gromo (PyPI, `pip install gromo`) grows networks that are built of its own layers; evolve grows the same architecture
written with `torch.nn`. All arms begin with the same weights, see the same batches, train the same steps with the same
one-cycle learning rate, and double the same hidden layers at the middle. An optimizer that holds a growth's old tensors
would train nothing, so gromo's arms get a new one, as its documentation says.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cifar import Data, add_data, endless, load, make_optimizer, one_cycle
from gromo.containers.growing_mlp import GrowingMLP
from gromo.containers.vgg import VGG
from gromo.utils.training_utils import compute_statistics
from timing import Timer, arguments, spread, told, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import mutate

WIDTHS = (8, 16, 32)
HIDDEN = 64
TINY_BATCHES = 8


@dataclass(frozen=True)
class Net:
    """An architecture in both worlds, and where it grows."""

    name: str
    gromo: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    sites: tuple[str, ...]  # of the plain one; gromo's growing layers are as many, in the same order
    peak: float


def gromo_vgg() -> nn.Module:
    """Returns gromo's VGG: three stages of two convolutions, and one linear layer."""
    cfg: list[str | int] = []
    for width in WIDTHS:
        cfg += [width, width, "M"]
    target = [2 * value if isinstance(value, int) and number % 3 == 0 else value for number, value in enumerate(cfg)]
    return VGG(
        cfg, target, num_classes=10, number_of_fc_layers=1, input_spatial_shape=(32, 32), device=torch.device("cpu")
    )


def plain_vgg() -> nn.Module:
    """Returns the same, of `torch.nn`."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, 10))


def gromo_mlp() -> nn.Module:
    """Returns gromo's MLP with two hidden layers."""
    return GrowingMLP(3072, 10, HIDDEN, 2, activation=nn.ReLU(), device=torch.device("cpu"))


def plain_mlp() -> nn.Module:
    """Returns the same, of `torch.nn`."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)
    )


NETS = [
    Net("MLP", gromo_mlp, plain_mlp, ("1", "3"), 0.02),
    Net("CNN", gromo_vgg, plain_vgg, ("0", "7", "14"), 0.05),
]


def grow_gromo(model: Any, batches: list[tuple[Tensor, Tensor]], **extension: Any) -> None:
    """Doubles each hidden layer with the extension that is asked for."""
    for index in range(len(model._growable_layers)):
        model.set_growing_layers(index=index)
        layer = model._growing_layers[0]
        size = layer.in_features if isinstance(layer.layer, nn.Linear) else layer.in_channels
        layer.create_layer_extensions(extension_size=size, **extension)
        model.dummy_select_update()
        model.set_scaling_factor(1.0)
        model.apply_change(extension_size=size)


def grow_tiny(model: Any, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Adds, to each hidden layer, at most as many neurons as it has, by gromo's TINY (its full statistics)."""
    for index in range(len(model._growable_layers)):
        model.set_growing_layers(index=index)
        layer = model._growing_layers[0]
        size = layer.in_features if isinstance(layer.layer, nn.Linear) else layer.in_channels
        compute_statistics(model, batches, nn.CrossEntropyLoss(reduction="sum"))
        model.compute_optimal_updates(maximum_added_neurons=size, compute_delta=False)
        model.reset_computation()
        model.dummy_select_update()
        model.set_scaling_factor(1.0)
        model.apply_change()


def grow_evolve(
    model: nn.Module, optimizer: torch.optim.Optimizer, net: Net, probe: tuple[Tensor, Tensor], init: str
) -> None:
    """Doubles each hidden layer, verified, and the optimizer comes along."""
    images, targets = probe

    def loss(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    for site in net.sites:
        mutate(
            model,
            "widen",
            site=site,
            init=init,
            optimizer=optimizer,
            example_inputs=images,
            loss=loss,
            strict=True,
            seed=0,
        )


ARMS = {
    "evolve, split": "split",
    "evolve, zero_out": "zero_out",
    "evolve, gradmax": "gradmax",
    "gromo, default": {},
    "gromo, zero fan-out": {"output_extension_init": "kaiming", "input_extension_init": "zeros"},
    "gromo, TINY": None,
}


def run(net: Net, arm: str, data: Data, seed: int, steps: int) -> dict[str, Any]:
    """Trains, grows at the middle, trains on; returns the figures."""
    torch.manual_seed(seed)
    theirs = net.gromo()
    ours = net.plain()
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other)
    model = ours if arm.startswith("evolve") else theirs
    optimizer = make_optimizer(model)
    batches = endless(data.batches(seed))
    images = data.held_out("val").example(500)
    growth = jump = kept = 0.0
    timer = Timer()
    for number in range(steps):
        if number == steps // 2:
            model.eval()
            with torch.no_grad():
                before = model(images)
            ahead = [next(batches) for _ in range(TINY_BATCHES)]
            grows = Timer()
            if isinstance(ARMS[arm], str):
                grow_evolve(model, optimizer, net, (ahead[0][0][:8], ahead[0][1][:8]), ARMS[arm])
            elif ARMS[arm] is None:
                grow_tiny(model, ahead)
                optimizer = make_optimizer(model)
            else:
                grow_gromo(model, ahead, **ARMS[arm])
                optimizer = make_optimizer(model)
            growth = grows.read().cpu
            kept = sum(p in optimizer.state for p in model.parameters()) / len(list(model.parameters()))
            model.eval()
            with torch.no_grad():
                jump = float((model(images) - before).abs().max() / before.abs().max())
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(number / steps, net.peak)
        inputs, targets = next(batches)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model.train()(inputs), targets).backward()
        optimizer.step()
    took = timer.read()
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean() for x, y in data.held_out("test").epoch(0)]
    return {
        "jump": jump,
        "growth_ms": 1000 * growth,
        "optimizer_kept": kept,
        "cpu": took.cpu,
        "test": 100 * statistics.fmean(float(h) for h in hits),
        "params": sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="in all (%(default)s)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    warnings.filterwarnings("ignore", module="gromo")
    data = load(chosen.data, chosen.images)
    cases = []
    for net in NETS:
        if chosen.only not in net.name:
            continue
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for seed in range(chosen.repetitions):
            for arm in ARMS:
                runs[arm].append(run(net, arm, data, seed, chosen.steps))
        for arm, of_arm in runs.items():
            figures = {key: spread([one[key] for one in of_arm]) for key in of_arm[0]}
            pairs = zip(of_arm, runs["evolve, split"], strict=True)
            case = {
                "name": f"{net.name}, {arm}",
                **figures,
                "cpu_over_evolve": spread([a["cpu"] / b["cpu"] for a, b in pairs]),
            }
            cases.append(case)
            print(
                f"{case['name']:26} jump {figures['jump']['median']:.2g}, growth {figures['growth_ms']['median']:.0f} "
                f"ms, optimizer state kept {figures['optimizer_kept']['median']:.0%}, test {told(figures['test'])} %, "
                f"CPU over evolve {told(case['cpu_over_evolve'])}, {figures['params']['median']:,.0f} parameters"
            )
    write_json(chosen.json, "peers", cases)


if __name__ == "__main__":
    main()
