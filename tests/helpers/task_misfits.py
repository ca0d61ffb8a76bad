"""Models, data, tasks and metrics that do not go together, by import path."""

from types import SimpleNamespace

import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader

from evolve.tasks import Supervised

N, FEATURES, VOCABULARY, LENGTH, SIZE = 16, 6, 11, 5, 8


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def linear(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, outputs))


class Form(nn.Module):
    """Classifies, and returns what it found in some form; takes one argument, or two."""

    def __init__(self, form="tensor", outputs=3):
        super().__init__()
        self.inner = linear(outputs)
        self.form = form

    def forward(self, x):
        logits = self.inner(x)
        if self.form == "logits":
            return {"logits": logits}
        if self.form == "object":
            return SimpleNamespace(logits=logits)
        if self.form == "tuple":
            return logits, logits
        return logits


class Flat(nn.Module):
    """A regression that returns one number for each sample in one dimension."""

    def __init__(self):
        super().__init__()
        self.inner = linear(1)

    def forward(self, x):
        return self.inner(x).squeeze(1)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, left, right):
        return self.inner(left + right)


class OwnLoss(nn.Module):
    """Computes its loss where it is given labels, as Hugging Face's models do."""

    def __init__(self, silent=False, scalar=True):
        super().__init__()
        self.inner = linear()
        self.silent, self.scalar = silent, scalar

    def forward(self, values, labels=None):
        logits = self.inner(values)
        if self.silent or labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits, labels, reduction="mean" if self.scalar else "none")
        return {"loss": loss, "logits": logits}


class Pixels(nn.Module):
    """Classes of pixels, at the images' size or at half of it."""

    def __init__(self, stride=1, classes=3):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 3, stride, padding=1)

    def forward(self, images):
        return self.head(images)


class Tokens(nn.Module):
    """A language model of one layer; may return the logits of the last position alone, or in the wrong order."""

    def __init__(self, vocabulary=VOCABULARY, form="all"):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(8, vocabulary)
        self.form = form

    def forward(self, input_ids):
        logits = self.head(self.embedding(input_ids))
        if self.form == "last":
            return logits[:, -1]
        return logits.transpose(1, 2) if self.form == "transposed" else logits


class Detector(nn.Module):
    """Returns losses in train mode and detections in eval mode, as torchvision's detectors do, without their checks."""

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, classes + 4)

    def forward(self, images, targets=None):
        found = [self.head(self.backbone(image[None]).mean((2, 3)))[0] for image in images]
        if self.training:
            scores = torch.stack([one[4:] for one in found])
            labels = torch.stack([target["labels"][0] for target in targets])
            boxes = torch.stack([one[:4] for one in found]) - torch.stack([target["boxes"][0] for target in targets])
            return {"classes": nn.functional.cross_entropy(scores, labels), "boxes": boxes.abs().mean() / 100}
        return [{"boxes": one[None, :4].abs(), "scores": one[:1], "labels": one[4:].argmax()[None]} for one in found]


def _pair(x=None, y=None):
    x = _normal(N, FEATURES) if x is None else x
    y = torch.arange(N) % 3 if y is None else y
    return (x, y), (x.clone(), y.clone())


def _fields(**fields):
    return ({**fields}, {**fields})


def _loader(samples, size=4, **options):
    return (DataLoader(samples, size, **options),) * 2


def _images(y):
    return _pair(_normal(N, 3, SIZE, SIZE), y)


def _masks(highest=3):
    return (torch.arange(N * SIZE * SIZE) % highest).reshape(N, SIZE, SIZE)


def _boxes(box=(1.0, 1.0, 5.0, 5.0), label=1, stacked=False, **other):
    target = {"boxes": torch.tensor([box]), "labels": torch.tensor([label]), **other}
    target = {name: value for name, value in target.items() if value is not None}
    samples = [(_normal(3, SIZE, SIZE), dict(target)) for _ in range(N)]
    if stacked:
        return _loader(samples)
    return _loader(samples, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))


def _tokens(highest=VOCABULARY):
    return (torch.arange(N * LENGTH) % highest).reshape(N, LENGTH)


_BITS = (torch.arange(N * 3) % 2).reshape(N, 3)

DATA = {
    "classes": _pair,
    "double": lambda: _pair(x=_normal(N, FEATURES).double()),
    "double regression": lambda: _pair(y=_normal(N, 1).double()),
    "column": lambda: _pair(y=_normal(N, 1)),
    "flat": lambda: _pair(y=_normal(N)),
    "three columns": lambda: _pair(y=_normal(N, 3)),
    "nan targets": lambda: _pair(y=_normal(N, 1).index_fill(0, torch.tensor([3]), float("nan"))),
    "nan features": lambda: _pair(x=_normal(N, FEATURES).index_fill(0, torch.tensor([3]), float("inf"))),
    "high class": lambda: _pair(y=torch.arange(N) % 4),
    "classes from 1": lambda: _pair(y=torch.arange(N) % 3 + 1),
    "bits": lambda: _pair(y=_BITS.float()),
    "whole bits": lambda: _pair(y=_BITS),
    "percent bits": lambda: _pair(y=_BITS.float() * 100),
    "dict": lambda: _fields(values=_normal(N, FEATURES), labels=torch.arange(N) % 3),
    "dict, key y": lambda: _fields(values=_normal(N, FEATURES), y=torch.arange(N) % 3),
    "dict without labels": lambda: _fields(values=_normal(N, FEATURES)),
    "dict, another key": lambda: _fields(features=_normal(N, FEATURES), labels=torch.arange(N) % 3),
    "dict of text": lambda: _loader([{"values": "a text", "labels": 1}] * N),
    "inputs alone": lambda: _loader([_normal(FEATURES) for _ in range(N)]),
    "masks": lambda: _images(_masks()),
    "masks with a channel": lambda: _images(_masks().unsqueeze(1)),
    "masks of half the size": lambda: _images(_masks()[:, ::2, ::2]),
    "masks with a border": lambda: _images(_masks().index_fill(1, torch.tensor([0]), 255)),
    "float masks": lambda: _images(_masks().float()),
    "one-hot masks": lambda: _images(nn.functional.one_hot(_masks(), 3).movedim(-1, 1)),
    "byte masks": lambda: _images(_masks().to(torch.uint8)),
    "labels for images": lambda: _images(torch.arange(N) % 3),
    "tokens": lambda: _pair(_tokens(), _tokens()),
    "tokens alone": lambda: (DataLoader(_tokens(), 4),) * 2,
    "high tokens": lambda: _pair(_tokens(), _tokens(VOCABULARY + 1)),
    "high input tokens": lambda: _pair(_tokens(VOCABULARY + 1), _tokens()),
    "float tokens": lambda: _pair(_tokens().float(), _tokens()),
    "token fields": lambda: _fields(input_ids=_tokens(), labels=_tokens()),
    "token fields and a mask": lambda: _fields(
        input_ids=_tokens(), attention_mask=torch.ones_like(_tokens()), labels=_tokens()
    ),
    "tokens without labels": lambda: _fields(input_ids=_tokens()),
    "one label for a text": lambda: _pair(_tokens(), torch.arange(N) % 3),
    "boxes": _boxes,
    "no boxes": lambda: _boxes(boxes=None),
    "no labels": lambda: _boxes(labels=None),
    "flat boxes": lambda: _boxes(boxes=torch.tensor([1.0, 1.0, 5.0, 5.0])),
    "boxes without an area": lambda: _boxes((5.0, 1.0, 5.0, 5.0)),
    "boxes with width and height": lambda: _boxes((5.0, 5.0, 2.0, 2.0)),
    "boxes of labels from 0": lambda: _boxes(label=0),
    "boxes of high labels": lambda: _boxes(label=7),
    "boxes of float labels": lambda: _boxes(labels=torch.tensor([1.0])),
    "nan boxes": lambda: _boxes((1.0, 1.0, float("nan"), 5.0)),
    "stacked boxes": lambda: _boxes(stacked=True),
    "one held out": lambda: (_pair(y=_normal(N, 1))[0], (_normal(1, FEATURES), _normal(1, 1))),
    "single samples": lambda: _loader([(_normal(FEATURES), _normal(1)) for _ in range(N)], size=1),
    "few": lambda: ((_normal(3, FEATURES), torch.arange(3)), (_normal(2, FEATURES), torch.arange(2))),
    "ragged": lambda: _loader([(_normal(3 + i % 2), 0) for i in range(N)]),
}


def data(kind):
    return DATA[kind]()


def never_calls(model, batch):
    return next(model.parameters()).pow(2).sum()


def a_float(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1]).item()


def float_and_outputs(model, batch):
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]).item(), outputs


def three(model, batch):
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]), outputs, batch[1]


def swapped(model, batch):
    outputs = model(batch[0])
    return outputs, nn.functional.cross_entropy(outputs, batch[1])


def nothing(model, batch):
    nn.functional.cross_entropy(model(batch[0]), batch[1])


def without_outputs(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def right(model, batch):
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]), outputs


def raises(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def calls_twice(model, batch):
    return nn.functional.mse_loss(model(batch[0]), model(-batch[0]))


def unreduced(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def right_share(predictions, targets):
    return (predictions.argmax(1) == targets).float().mean()


def for_each_class(predictions, targets):
    return predictions.sum(0)


def text_metric(predictions, targets):
    return "good"


def failing(predictions, targets):
    raise ValueError("no such thing")


class Own(Supervised):
    """A task that is not registered."""

    own_loss = "cross_entropy"


class Several(torchmetrics.Metric):
    """Two numbers by name, one of which may be a vector."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions, targets):
        self.total += predictions.sum()
        self.count += len(targets)

    def compute(self):
        return {"mean": self.total / self.count, "count": self.count, "each": torch.stack([self.total, self.total])}
