"""A residual network for small images, after He et al. 2016, section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from evolve.errors import EvolveError
from evolve.models.lookup import models


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is a 1x1 convolution where the shape changes.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A 3x3 stem, stages `stage1`, `stage2`, ... that double the width and halve the image, and a linear head.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage.
        blocks: Residual blocks in each stage.

    Raises:
        EvolveError: If there is no stage, or a stage without a block.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, width: int = 16, blocks: Sequence[int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        if not blocks or min(blocks) < 1:
            raise EvolveError(f"A residual network needs at least one block in each stage, not blocks={list(blocks)}.")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self._stages = [f"stage{i + 1}" for i in range(len(blocks))]
        before = width
        for i, (name, count) in enumerate(zip(self._stages, blocks, strict=True)):
            after = width * 2**i
            first = BasicBlock(before, after, stride=1 if i == 0 else 2)
            self.add_module(name, nn.Sequential(first, *(BasicBlock(after, after) for _ in range(count - 1))))
            before = after
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights of the convolutions; everything else keeps its layers' default initialisation."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores for a batch of images."""
        x = self.stem(images)
        for name in self._stages:
            x = self.get_submodule(name)(x)
        scores: Tensor = self.fc(self.pool(x).flatten(1))
        return scores


@models.register("small_resnet")
def small_resnet(
    num_classes: int = 10, in_channels: int = 3, width: int = 16, blocks: Sequence[int] = (1, 1, 1)
) -> SmallResNet:
    """Builds a `SmallResNet`; `blocks=(3, 3, 3)` is the ResNet-20 of the paper."""
    return SmallResNet(num_classes, in_channels, width, blocks)
