"""Models that compute their own loss, as those of Hugging Face's transformers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from evolve.errors import MisfitError
from evolve.tasks.base import Task, tasks
from evolve.tasks.supervised import Classification, PairOptions, fields_of

_IGNORED = -100  # a label that models of transformers leave out of their loss


@tasks.register("huggingface")
class HuggingFace(Task):
    """A model that is called with a mapping by keyword, labels among it, and returns its loss (and logits).

    Metrics compare `logits` with `labels`: one class for each sample, of which accuracy is measured; classes of tokens,
    -100 not counted; several labels, as floats; or a number, as a float. Where the labels are the input tokens
    themselves, as those of causal language models, which shift them, a position's logits are compared with the next.
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

    def weight(self, batch: Any) -> float:
        """Returns how many labels are not ignored: those of a causal language model without the first position."""
        fields = fields_of(batch)
        labels = fields.get(self.options.target or "labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return self.count(batch)
        shifted = _are_inputs(labels, fields.get("input_ids"))
        return int(((labels[:, 1:] if shifted else labels) != _IGNORED).sum())

    def compared(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Returns logits and labels, in the shapes that metrics take."""
        logits, labels = self._pairs.compared(outputs, batch)
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
            return logits, labels
        if logits.dim() == 3 and labels.shape == logits.shape[:2]:
            if _are_inputs(labels, fields_of(batch).get("input_ids")):
                return logits[:, :-1].float(), labels[:, 1:]
            return logits.float().flatten(0, 1), labels.flatten()
        if labels.is_floating_point() and logits.shape == (*labels.shape, 1):
            return logits.squeeze(-1).float(), labels
        if labels.is_floating_point() and logits.shape == labels.shape and logits.dim() == 2:
            return logits.float().sigmoid(), labels.long()
        return logits, labels

    def right_answers(self, outputs: Any, batch: Any) -> Tensor | None:
        """Returns which answers are right where there is one class for each sample."""
        return self._pairs.right_answers(outputs, batch)

    def for_metrics(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Returns how many classes or labels there are, by the shapes that `compared` gives."""
        if not isinstance(predictions, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
            return {}
        if predictions.dim() == 3:  # of a causal language model
            return {"ignore_index": _IGNORED}
        if predictions.dim() == targets.dim() == 2:
            return {"task": "multilabel", "num_labels": predictions.shape[1], "average": "macro"}
        return {"task": "multiclass", "num_classes": predictions.shape[-1], "ignore_index": _IGNORED}


def _are_inputs(labels: Tensor, tokens: Any) -> bool:
    """Whether labels that count are the input tokens."""
    if not isinstance(tokens, Tensor) or tokens.shape != labels.shape:
        return False
    return bool(((labels == tokens) | (labels == _IGNORED)).all())
