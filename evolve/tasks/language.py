"""Language modelling: the next token of each position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from evolve.errors import MisfitError
from evolve.tasks.base import tasks
from evolve.tasks.checks import check_pair
from evolve.tasks.losses import loss_option
from evolve.tasks.supervised import Supervised


@tasks.register("language_modeling")
class LanguageModeling(Supervised):
    """The next token of each position: a causal model gives logits (N, L, vocabulary).

    A batch is a tensor of tokens (N, L + 1), of which the model sees all but the last, or a mapping with `input_ids`
    (N, L) and `labels` (N, L), which are the tokens that follow; labels of -100 are not counted.
    """

    measures: ClassVar = ("perplexity",)
    own_loss = "cross_entropy"

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Returns the tokens that the model sees, and those that follow them."""
        if isinstance(batch, Tensor):
            return batch[:, :-1], batch[:, 1:]
        inputs, targets = super().split(batch)
        if isinstance(inputs, Mapping) and list(inputs) == ["input_ids"]:
            inputs = inputs["input_ids"]
        return inputs, targets

    def _of(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = self.predictions(outputs)
        if not self._plain or not isinstance(logits, Tensor):
            return self.criterion(outputs, targets)
        return self.criterion(logits.flatten(0, -2), targets.flatten())

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns the label that is not counted."""
        return {"ignore_index": self._ignored}

    @property
    def _ignored(self) -> int:
        return int(loss_option(self.criterion, "ignore_index", -100))

    def right_answers(self, outputs: Any, batch: Any) -> Tensor | None:
        """Returns at which positions that are not ignored the next token is the most likely one."""
        logits, targets = self.predictions(outputs), self.split(batch)[1]
        hits: Tensor = logits.argmax(-1) == targets
        return hits[targets != self._ignored]

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns logits and targets in single precision."""
        predictions, targets = super().compared(outputs, batch)
        return predictions.float(), targets

    def check(self, outputs: Any, batch: Any, where: str = "") -> None:
        """Checks shapes and the range of the tokens."""
        logits, targets = self.predictions(outputs), self.split(batch)[1]
        misfit = not isinstance(logits, Tensor) or logits.dim() < 3 or logits.shape[1:-1] != targets.shape[1:]
        if misfit or (not where and len(logits) != len(targets)):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise MisfitError(
                f"Language modelling needs logits of shape (samples, positions, vocabulary); the model returned "
                f"{found}, and the targets have shape {tuple(targets.shape)}."
            )
        check_pair(self.criterion, logits.flatten(0, -2), targets.flatten(), where, what="The tokens to predict")

    def count(self, batch: Any) -> int:
        """Returns how many sequences a batch has."""
        return len(batch) if isinstance(batch, Tensor) else super().count(batch)
