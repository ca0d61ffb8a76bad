"""What a task is: what a batch means, its loss, and what its metrics compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from evolve.data.batches import form_of
from evolve.data.trees import count_samples, join, rows
from evolve.errors import MisfitError
from evolve.registry import Registered, Registry, TypedOptions
from evolve.tasks.stand_in import arguments_of, loss_of_outputs


class Task(Registered):
    """Says what a batch is: the loss of a model on it, and what its metrics compare.

    A task of your own needs `loss` alone; one that has metrics says in `compared` what they look at. A batch is
    anything that the data give: tensors, tuples, mappings, dataclasses, nested in any way.

    Attributes:
        name: Registered name, or that of the class.
        Options: Typed options.
        measures: Metrics, as `metrics:` in a configuration names them, where none are asked for.
        takes_loss: Whether `training.loss`, a function of outputs and targets, may take the place of its own.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions
    measures: ClassVar[Sequence[str | Mapping[str, Any]]] = ()
    takes_loss: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = cls.__name__  # until it is registered

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.read(options)

    def loss(self, model: Any, batch: Any) -> Any:
        """Returns the loss on a batch, a scalar, or the loss and the model's outputs.

        Args:
            model: Called as `model(...)`; it may be a compiled form of the model, or stand for it.
            batch: Where the model is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `loss(model, batch)`.")

    def evaluate(self, model: Any, batch: Any) -> Any:
        """Returns what `loss` does, in evaluation: the model is in eval mode, and no gradient is kept."""
        return self.loss(model, batch)

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns predictions and targets, as metrics compare them."""
        return outputs, batch

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns arguments of metrics that the data decide, such as `num_classes`."""
        return {}

    def right_answers(self, outputs: Any, batch: Any) -> Tensor | None:
        """Returns which answers that count are right, True or False for each; None where there are no such answers."""
        return None

    def kept(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor] | None:
        """Returns the scores and targets that `weight` and `right_answers` look at, if they are no more than little.

        They are kept for some steps, and counted of all of these at once as `(None, targets)`, where a target counts as
        one or, if it is ignored, not at all: in a step of a few milliseconds every operation shows. None where a batch
        is to be counted right away.
        """
        return None

    def count(self, batch: Any) -> int:
        """Returns how many samples a batch has."""
        return count_samples(batch)

    def weight(self, batch: Any) -> float:
        """Returns what the loss of a batch is a mean over, by which it weighs in the mean over batches.

        Samples, where a task says nothing else: tokens or pixels that are not ignored, in others.
        """
        return self.count(batch)

    def part(self, batch: Any, first: int, end: int) -> Any:
        """Returns a batch of its samples from `first` up to `end`: each of several devices takes a part."""
        return rows(batch, first, end)

    def join(self, batches: Sequence[Any]) -> Any:
        """Returns one batch of the samples of several."""
        return join(batches)

    def check_batch(self, batch: Any) -> None:
        """Looks at a batch before a model sees it, when a run begins.

        Raises:
            MisfitError: If it is none that the task takes, with the cause.
        """

    def check(self, outputs: Any, batch: Any, where: str = "") -> None:
        """Holds outputs and batch against each other before a run begins.

        Args:
            outputs: Of the model.
            batch: What it was run on; of all the data where they lie in memory.
            where: What to call the data, such as " of the training data".

        Raises:
            MisfitError: If they do not fit, with the cause.
        """

    def arguments(self, model: nn.Module, batch: Any) -> Any:
        """Returns what the model is called with: a tensor, a tuple of arguments or a mapping of keyword arguments.

        Raises:
            MisfitError: If the loss does not call the model.
        """
        return arguments_of(self.loss, model, batch)

    def loss_of(self, model: nn.Module, batch: Any) -> Callable[[Any], Tensor]:
        """Returns the loss as a function of what the model returns for the batch."""
        through = loss_of_outputs(self.loss, model, batch)
        return lambda outputs: loss_and_outputs(through(outputs))[0]


tasks: Registry[type[Task]] = Registry("task", "evolve.tasks")


def loss_and_outputs(found: Any) -> tuple[Tensor, Any]:
    """Takes apart what a task's loss returned.

    Args:
        found: A loss, a pair `(loss, outputs)`, or outputs that hold their loss, as Hugging Face models return them.

    Raises:
        MisfitError: If it is none of these.
    """
    if isinstance(found, Tensor):
        return found, None
    if isinstance(found, tuple) and len(found) == 2:
        if isinstance(found[0], Tensor):
            return found
        raise MisfitError(
            f"The loss returned a {type(found[0]).__name__}; a run needs one number as a tensor, such as the mean over "
            "the samples."
        )
    held = found.get("loss") if isinstance(found, Mapping) else getattr(found, "loss", None)
    if isinstance(held, Tensor):
        return held, found
    raise MisfitError(
        f"The loss of a task returns a scalar tensor or (loss, outputs); this one returned {form_of(found)}."
    )


class FunctionTask(Task):
    """A task made of a function.

    Args:
        function: `(model, batch) -> loss`, or `-> (loss, outputs)`.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.name = getattr(function, "__name__", type(self).__name__)  # type: ignore[misc]  # each has one of its own
        self._function = function

    def loss(self, model: Any, batch: Any) -> Any:
        """Returns what the function does."""
        return self._function(model, batch)
