"""Built-in models, and how a name becomes a model."""

from __future__ import annotations

from evolve.models.lookup import build_model, find_model, models
from evolve.models.mlp import mlp
from evolve.models.simple_cnn import SimpleCNN
from evolve.models.small_resnet import SmallResNet, small_resnet

__all__ = ["SimpleCNN", "SmallResNet", "build_model", "find_model", "mlp", "models", "small_resnet"]
