"""Models that compute their own loss, as those of Hugging Face's transformers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from evolve.errors import MisfitError
from evolve.tasks.base import Task, tasks
from evolve.tasks.supervised import Classification, PairOptions, fields_of


@tasks.register("huggingface")
class HuggingFace(Task):
    """A model that is called with a mapping by keyword, labels among it, and returns its loss (and logits).

    Metrics compare `logits` with `labels`; where those are one class for each sample, accuracy is measured.
    """

    Options = PairOptions
    measures = ("accuracy",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._pairs = Classification(target=self.options.target)

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, Any]:
        """Returns the model's own loss, and its outputs."""
        fields = fields_of(batch)
        if not fields:
            raise MisfitError(
                f"The task 'huggingface' takes batches that are mappings, such as {{'input_ids': ..., 'labels': ...}}; "
                f"this one is a {type(batch).__name__}."
            )
        outputs = model(**fields)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if not isinstance(loss, Tensor):
            raise MisfitError(
                f"The model returned no loss. It needs labels in its batch, and this one has {', '.join(fields)}; or "
                "use another task, such as classification."
            )
        return loss, outputs

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns logits and labels."""
        return self._pairs.compared(outputs, batch)

    def right_answers(self, outputs: Any, batch: Any) -> Tensor | None:
        """Returns which answers are right where there is one class for each sample."""
        return self._pairs.right_answers(outputs, batch)

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns how many classes there are."""
        return self._pairs.for_metrics(predictions, targets)
