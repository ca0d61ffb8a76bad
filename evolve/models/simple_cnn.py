"""The small convolutional network that the examples grow."""

from __future__ import annotations

from torch import Tensor, nn

from evolve.errors import EvolveError
from evolve.models.lookup import models

_MIN_SIZE = 4  # two poolings halve the image twice


@models.register("simple_cnn")
class SimpleCNN(nn.Module):
    """Three 3x3 convolutions and two linear layers; 2,193,674 parameters at the defaults.

    `features` maps (N, 3, 32, 32) to (N, 128, 8, 8); `classifier` flattens that into class scores.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        image_size: Height and width of the images, at least 4.
        dropout: Probability of dropping a hidden unit of the classifier.

    Raises:
        EvolveError: If the images are too small for the two poolings.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        if image_size < _MIN_SIZE:
            raise EvolveError(
                f"SimpleCNN halves its images twice, so image_size must be at least {_MIN_SIZE}, not {image_size}. "
                "Resize the images, or choose the model 'mlp'."
            )
        side = image_size // 4
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * side * side, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores for a batch of images."""
        scores: Tensor = self.classifier(self.features(images))
        return scores
