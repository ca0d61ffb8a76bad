"""Built-in models, and how a name becomes a model."""

from __future__ import annotations

from evolve.models.gpt import GPT
from evolve.models.lookup import build_model, find_model, models, size_faults
from evolve.models.mlp import mlp
from evolve.models.simple_cnn import SimpleCNN
from evolve.models.small_resnet import SmallResNet, small_resnet
from evolve.models.unet import UNet
from evolve.models.weights import load_weights

__all__ = [
    "GPT",
    "SimpleCNN",
    "SmallResNet",
    "UNet",
    "build_model",
    "find_model",
    "load_weights",
    "mlp",
    "models",
    "size_faults",
    "small_resnet",
]
