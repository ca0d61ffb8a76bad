"""Tasks on inputs and targets: classification, of pixels too, several labels at once, regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from evolve.errors import MisfitError, did_you_mean
from evolve.registry import TypedOptions
from evolve.tasks.base import Task, tasks
from evolve.tasks.checks import check_pair
from evolve.tasks.losses import Loss, LossConfig, averaged_over, loss_name, loss_option

TARGETS = ("labels", "label", "targets", "target")  # keys of a mapping that hold the targets, where none is named
_PREDICTIONS = ("logits", "out", "predictions")  # where models that return more than a tensor keep what is compared
_LITTLE = 2**16  # scores of a batch that are kept for some steps: 256 KiB

Weights = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
"""One for each class or label."""


class PairOptions(TypedOptions):
    """The key or field of a batch that holds the targets, where a batch is no pair."""

    target: str | None = None


class Supervised(Task):
    """A task on pairs of inputs and targets.

    A batch is `(inputs, targets)`, or a mapping or dataclass with the targets under a key of its own. A tuple of inputs
    is what the model is called with, and so is a mapping, by keyword.

    Args:
        loss: `(outputs, targets) -> scalar tensor`, instead of the task's own.
        **options: Those of the task.

    Attributes:
        own_loss: Name of the loss that the task has of its own.
        loss_options: Options of that loss, and those of the task that set them.

    Raises:
        MisfitError: If options of the task's own loss are set, and another one is given.
    """

    Options = PairOptions
    takes_loss = True
    own_loss: ClassVar[str]
    loss_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, loss: Loss | None = None, **options: Any) -> None:
        super().__init__(**options)
        if loss is not None:
            self._refuse_unused()
        self.criterion: Loss = loss or self.default_loss().build()
        self._given_as = {} if loss else {name: f"task.options.{option}" for name, option in self.loss_options.items()}
        self._plain = bool(loss_name(self.criterion))
        self._averaged_over = averaged_over(self.criterion)
        self._weighted = loss_option(self.criterion, "weight", None) is not None

    def _refuse_unused(self) -> None:
        """Refuses options of the task's own loss where another one takes its place."""
        for name, option in self.loss_options.items():
            if option in self.options.model_fields_set and option != "ignore_index":  # which metrics take too
                raise MisfitError(
                    f"task.options.{option} belongs to the loss of the task '{self.name}' ({self.own_loss}), and "
                    f"another loss is given. Set an option of that one (training.loss.options.{name}, where it has "
                    "one), or leave out training.loss."
                )

    def default_loss(self) -> LossConfig:
        """Returns the loss that the task has of its own."""
        options = {name: getattr(self.options, option) for name, option in self.loss_options.items()}
        return LossConfig(name=self.own_loss, options={n: value for n, value in options.items() if value is not None})

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Returns inputs and targets.

        Raises:
            MisfitError: If the batch has no targets.
        """
        if isinstance(batch, tuple | list) and len(batch) >= 2 and not hasattr(batch, "_fields"):
            return batch[0], batch[1]
        fields = fields_of(batch)
        wanted = [self.options.target] if self.options.target else [key for key in TARGETS if key in fields]
        if not wanted or wanted[0] not in fields:
            found = f"a {type(batch).__name__}" + (f" with {', '.join(map(repr, fields))}" if fields else "")
            asked = f"'{self.options.target}'" if self.options.target else "targets"
            meant = did_you_mean(self.options.target, fields) if self.options.target else ""
            raise MisfitError(
                f"The task '{self.name}' takes batches (inputs, targets), or mappings that hold the targets; this one "
                f"has no {asked}: it is {found}.{meant} Name the key (task.options.target), return (input, target) "
                "from the data set, or give the DataLoader a collate_fn."
            )
        return {key: value for key, value in fields.items() if key != wanted[0]}, fields[wanted[0]]

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, Any]:
        """Returns the loss and the outputs."""
        inputs, targets = self.split(batch)
        outputs = call_model(model, inputs)
        return self._of(outputs, targets), outputs

    def _of(self, outputs: Any, targets: Any) -> Tensor:
        return self.criterion(self.predictions(outputs) if self._plain else outputs, targets)

    def predictions(self, outputs: Any) -> Any:
        """Returns the tensor of predictions in what a model returned; the outputs themselves where there is none."""
        if isinstance(outputs, Tensor):
            return outputs
        fields = fields_of(outputs)
        return next((fields[key] for key in _PREDICTIONS if isinstance(fields.get(key), Tensor)), outputs)

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns predictions and targets."""
        return self.predictions(outputs), self.split(batch)[1]

    def count(self, batch: Any) -> int:
        """Returns how many samples a batch has."""
        if type(batch) in (tuple, list) and isinstance(batch[0], Tensor):
            return batch[0].shape[0]  # `len` of a tensor is Python code, and every step counts
        return super().count(batch)

    def weight(self, batch: Any) -> float:
        """Returns what one of torch's losses averages over, such as the pixels not ignored; samples for any other."""
        targets = self.split(batch)[1]
        if self._averaged_over is None or not isinstance(targets, Tensor):
            return self.count(batch)
        return self._averaged_over(targets)

    def check(self, outputs: Any, batch: Any, where: str = "") -> None:
        """Checks shapes, types and ranges of outputs and targets against what torch's losses take."""
        predictions, targets = self.predictions(outputs), self.split(batch)[1]
        check_pair(self.criterion, predictions, targets, where, given_as=self._given_as)

    def arguments(self, model: nn.Module, batch: Any) -> Any:
        """Returns the inputs."""
        return self.split(batch)[0]

    def loss_of(self, model: nn.Module, batch: Any) -> Callable[[Any], Tensor]:
        """Returns the loss as a function of the model's outputs."""
        targets = self.split(batch)[1]
        return lambda outputs: self._of(outputs, targets)


def call_model(model: Any, inputs: Any) -> Any:
    """Calls a model with a tensor, with several arguments, or with keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def fields_of(value: Any) -> dict[str, Any]:
    """Returns what a mapping, a dataclass or a named tuple holds, by name; nothing for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


@tasks.register("classification")
class Classification(Supervised):
    """One class for each sample: outputs (N, classes, ...), targets (N, ...) of class numbers or of probabilities."""

    class Options(PairOptions):
        """Weights of the classes, and the share of each target that is spread over all of them."""

        class_weights: Weights | None = None
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    measures: ClassVar = ("accuracy",)
    own_loss = "cross_entropy"
    loss_options: ClassVar = {"weight": "class_weights", "label_smoothing": "label_smoothing"}

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns how many classes there are; one output means two."""
        classes = predictions.shape[1] if isinstance(predictions, Tensor) and predictions.dim() > 1 else 1
        return {"task": "multiclass", "num_classes": classes} if classes > 1 else {"task": "binary"}

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns predictions and targets; of a single output its probability (N,), and 0 or 1 as targets (N,).

        torchmetrics would take a batch of logits that happen to lie between 0 and 1 for probabilities.
        """
        predictions, targets = super().compared(outputs, batch)
        if not self._binary(predictions, targets):
            return predictions, targets
        flat = predictions.float().flatten()
        logits = loss_name(self.criterion) == "binary_cross_entropy_with_logits"
        return flat.sigmoid() if logits else flat, targets.flatten().round().long()

    def _binary(self, predictions: Any, targets: Any) -> bool:
        """Whether there is one output, the probability of one of two classes."""
        one = isinstance(predictions, Tensor) and isinstance(targets, Tensor) and predictions.shape[1:].numel() == 1
        return one and loss_name(self.criterion).startswith("binary_cross_entropy")

    def kept(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor] | None:
        """Returns scores (N, classes) and class numbers (N,), where these are all there is and no class weighs more."""
        if type(self) is not Classification or self._weighted:  # one that is made from it may look at more
            return None
        predictions, targets = self.predictions(outputs), self.split(batch)[1]
        scores = isinstance(predictions, Tensor) and predictions.dim() == 2 and predictions.shape[1] > 1
        scores = scores and predictions.numel() <= _LITTLE
        numbers = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
        return (predictions.detach(), targets) if scores and numbers else None

    def right_answers(self, outputs: Any, batch: Any) -> Tensor | None:
        """Returns which answers are right."""
        predictions, targets = self.predictions(outputs), self.split(batch)[1]
        classes = isinstance(predictions, Tensor) and predictions.dim() == 2 and isinstance(targets, Tensor)
        if (not classes or predictions.shape[1] == 1) and self._binary(predictions, targets):
            probabilities, answers = self.compared(outputs, batch)
            hits: Tensor = (probabilities > 0.5).eq(answers)
            return hits
        if not classes or targets.dim() != 1 or targets.is_floating_point():
            return None
        answered: Tensor = predictions.argmax(1).eq(targets)
        return answered


@tasks.register("multilabel")
class Multilabel(Supervised):
    """Any number of labels for each sample: outputs (N, labels), logits; targets (N, labels) of 0.0 and 1.0."""

    class Options(PairOptions):
        """How much more a positive label weighs than a negative one, for each label."""

        pos_weight: Weights | None = None

    measures: ClassVar = ("f1",)
    own_loss = "binary_cross_entropy_with_logits"
    loss_options: ClassVar = {"pos_weight": "pos_weight"}

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns probabilities, and targets as integers."""
        predictions, targets = super().compared(outputs, batch)
        return predictions.float().sigmoid(), targets.long()

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns how many labels there are; a macro average says most where labels are rare."""
        return {"task": "multilabel", "num_labels": predictions.shape[1], "average": "macro"}


@tasks.register("regression")
class Regression(Supervised):
    """Numbers for each sample: outputs and targets have one shape."""

    measures: ClassVar = ("rmse", "r2")
    own_loss = "mse_loss"

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns predictions and targets as (N,) or (N, outputs)."""
        predictions, targets = super().compared(outputs, batch)
        rows = tuple(values.float().reshape(len(values), -1) for values in (predictions, targets))
        single = all(values.shape[1] == 1 for values in rows)
        return (rows[0].flatten(), rows[1].flatten()) if single else rows

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns nothing: torchmetrics' defaults are those of a regression."""
        return {}


@tasks.register("segmentation")
class Segmentation(Supervised):
    """One class for each pixel: outputs (N, classes, H, W), targets (N, H, W) of class numbers."""

    class Options(PairOptions):
        """A target that is not counted, such as that of borders, and weights of the classes."""

        ignore_index: int | None = None
        class_weights: Weights | None = None

    measures: ClassVar = ("iou",)
    own_loss = "cross_entropy"
    loss_options: ClassVar = {"weight": "class_weights", "ignore_index": "ignore_index"}

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns how many classes there are, and which target is not counted."""
        ignored = self.options.ignore_index
        known = {"task": "multiclass", "num_classes": predictions.shape[1]}
        return known if ignored is None else {**known, "ignore_index": ignored}
