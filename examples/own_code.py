"""A model, data and a mutation operator of your own, for `configs/own_model.yaml`."""

import math

import torch
from torch import Tensor, nn

import evolve


class SpiralNet(nn.Module):
    """An ordinary model that knows nothing of evolve."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.entry = nn.Linear(2, hidden)
        self.body = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 2)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.entry(points))))


def spirals(samples: int = 2000, noise: float = 0.1, seed: int = 0):
    """Two intertwined spirals: `(train, val)`, each `(points, classes)`."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(samples) % 2
    radius = torch.rand(samples, generator=generator).sqrt()
    angle = 3 * math.pi * radius + math.pi * classes
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) * 3
    points += noise * torch.randn(points.shape, generator=generator)
    cut = samples * 4 // 5
    return (points[:cut], classes[:cut]), (points[cut:], classes[cut:])


class DampedLayer(nn.Module):
    """`x + scale * relu(linear(x))`; with scale 0 it begins as the identity."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.relu(self.linear(x))


@evolve.operator("damped_layer", preserves="exact")
def damped_layer(model: nn.Module, site: str, context: evolve.Context) -> tuple[bool, str]:
    """Appends a damped layer to a Sequential."""
    chain = model.get_submodule(site)
    if not isinstance(chain, nn.Sequential) or context.shapes is None:
        return False, f"'{site}' is no Sequential that the probe batch reached. Name one as the site."
    width = context.shapes[1][-1]
    chain.append(DampedLayer(width, context.options.get("scale", 0.0)))
    return True, f"Appended a damped layer of width {width} to '{site}'."
