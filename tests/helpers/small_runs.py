"""A run whose FLOPs can be counted by hand."""

import torch
from torch import nn

from evolve import EvolutionConfig, Evolver, LrScheduleConfig, OptimizerConfig, TrainingConfig

# A Linear(8, 6) and a Linear(6, 3): 2 FLOPs for each weight.
SMALL = 2 * (8 * 6 + 6 * 3)
SAMPLES = 40  # five batches of eight


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def evolver(folder=None, evolution=None, model=None, **training):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (SAMPLES,), generator=g)
    x = torch.randn(SAMPLES, 8, generator=g) + y.view(-1, 1)
    return Evolver(
        model or net(), (x, y), (x[:10], y[:10]), batch_size=8, output=folder, progress=False,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.1}),
        lr_schedule=LrScheduleConfig(name="OneCycleLR", options={"max_lr": 0.1}),
        training=TrainingConfig.model_validate({"device": "cpu", **training}),
        evolution=EvolutionConfig.model_validate(evolution or {}),
    )  # fmt: skip
