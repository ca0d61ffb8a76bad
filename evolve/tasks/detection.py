"""Object detection with torchvision's models, which compute their own losses in train mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evolve.data.batches import form_of
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

    def check_batch(self, batch: Any) -> None:
        """Checks images and targets."""
        for number, (image, target) in enumerate(zip(*_lists(batch), strict=True)):
            if not isinstance(image, Tensor) or image.dim() != 3 or not image.is_floating_point():
                found = f"{tuple(image.shape)} ({image.dtype})" if isinstance(image, Tensor) else type(image).__name__
                raise MisfitError(f"Image {number} is {found}; detection takes tensors (C, H, W) of floats in [0, 1].")
            if fault := _target_fault(target):
                raise MisfitError(f"Target {number} {fault}")


def _lists(batch: Any) -> tuple[list[Tensor], list[Any]]:
    paired = isinstance(batch, tuple | list) and len(batch) == 2
    if not paired or not all(isinstance(part, tuple | list) for part in batch) or len(batch[0]) != len(batch[1]):
        raise MisfitError(
            f"The task 'detection' takes batches (list of images, list of targets) of one length; this one is "
            f"{form_of(batch)}. Give the DataLoader collate_fn=lambda samples: tuple(zip(*samples))."
        )
    return list(batch[0]), list(batch[1])


def _target_fault(target: Any) -> str:
    """Says what is wrong with the boxes of an image; "" where nothing is."""
    found = target if isinstance(target, Mapping) else {}
    if missing := [key for key in ("boxes", "labels") if not isinstance(found.get(key), Tensor)]:
        has = ", ".join(map(repr, found)) or f"is a {type(target).__name__}"
        return f"has no tensor {' and no '.join(map(repr, missing))} ({has}): detection needs both."
    boxes, labels = found["boxes"], found["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        shapes = f"{tuple(boxes.shape)} and labels of shape {tuple(labels.shape)}"
        return f"has boxes of shape {shapes}; they have to be (boxes, 4) and (boxes,)."
    if not boxes.is_floating_point() or labels.dtype != torch.long:
        return f"has boxes of {boxes.dtype} and labels of {labels.dtype}: use .float() for boxes, .long() for labels."
    if not ((boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()):
        return (
            "has a box without an area, or with a corner below 0: boxes are corners (x1, y1, x2, y2) in pixels. Those "
            "of x, y, width and height: torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')."
        )
    if len(labels) and int(labels.min()) < 1:
        return f"has the label {int(labels.min())}: detection counts from 1, 0 is the background. Add 1 to the labels."
    return ""


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
