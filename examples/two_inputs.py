"""A model that takes a picture and a vector."""

import torch
from torch import Tensor, nn


class TwoInputs(nn.Module):
    """Sees a picture (N, 1, H, W) and a vector (N, features) and says which class they are together."""

    def __init__(self, num_classes: int = 2, features: int = 6) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.vector = nn.Linear(features, 8)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, num_classes))

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        """Returns the logits, (N, num_classes)."""
        seen = self.picture(picture).mean((2, 3))
        return self.head(torch.cat([seen, self.vector(vector)], 1))
