"""Object detection with torchvision's models, which compute their own losses in train mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import MisfitError
from evolve.tasks.base import Task, tasks

# Keep their running statistics, and what they drop, out of an evaluation.
_STILL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.InstanceNorm2d)


@tasks.register("detection")
class Detection(Task):
    """Boxes and labels: a batch is `(images, targets)`, lists with one entry for each sample.

    An image is a tensor (C, H, W) in [0, 1], a target a mapping with `boxes` (boxes, 4) as (x1, y1, x2, y2) in pixels
    and `labels` (boxes,), from 1 on. The loss is the sum of those that the model returns. Mean average precision is
    `{name: map}` among the metrics; torchmetrics needs pycocotools for it.
    """

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Returns the sum of the model's losses; the model is in train mode."""
        images, targets = _lists(batch)
        found = model(images, targets)
        if not isinstance(found, dict) or not found:
            raise MisfitError(
                f"A detection model returns a mapping of losses in train mode; this one returned a "
                f"{type(found).__name__}."
            )
        return torch.stack([value.sum() for value in found.values()]).sum()

    def evaluate(self, model: Any, batch: Any) -> tuple[Tensor, Any]:
        """Returns the losses on held-out data, and the detections of the model in eval mode."""
        images, targets = _lists(batch)
        detections = model(images)
        with _gives_losses(model):
            return self.loss(model, (images, targets)), detections

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns detections and targets."""
        return outputs, list(batch[1])

    def count(self, batch: Any) -> int:
        """Returns how many images a batch has."""
        return len(batch[0])

    def join(self, batches: Sequence[Any]) -> Any:
        """Returns one batch of the images of several, which may have different sizes."""
        return [image for batch in batches for image in batch[0]], [target for batch in batches for target in batch[1]]

    def check(self, outputs: Any, batch: Any, where: str = "") -> None:
        """Checks the targets."""
        for number, target in enumerate(_lists(batch)[1]):
            missing = {"boxes", "labels"} - set(target)
            if missing:
                raise MisfitError(f"Target {number} has no {' and no '.join(sorted(missing))}: detection needs both.")
            boxes, labels = target["boxes"], target["labels"]
            if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
                raise MisfitError(
                    f"Target {number} has boxes of shape {tuple(boxes.shape)} and labels of shape "
                    f"{tuple(labels.shape)}; they have to be (boxes, 4) and (boxes,)."
                )
            if len(boxes) and not ((boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()):
                raise MisfitError(
                    f"Target {number} has a box without an area, or with a corner below 0: boxes are (x1, y1, x2, y2)."
                )


def _lists(batch: Any) -> tuple[list[Tensor], list[Any]]:
    paired = isinstance(batch, tuple | list) and len(batch) == 2
    if not paired or not all(isinstance(part, tuple | list) for part in batch) or len(batch[0]) != len(batch[1]):
        raise MisfitError(
            f"The task 'detection' takes batches (list of images, list of targets) of one length; this one is a "
            f"{type(batch).__name__}. Give the DataLoader collate_fn=lambda samples: tuple(zip(*samples))."
        )
    return list(batch[0]), list(batch[1])


@contextmanager
def _gives_losses(model: Any) -> Iterator[None]:
    """Puts the model's own modules in train mode, in which they return losses; layers that would change stay still."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = not isinstance(module, _STILL)
        yield
    finally:
        for module, training in modes:
            module.training = training
