"""The way back to the base model, so that a model in memory can take the architecture of any checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from evolve.errors import CheckpointError
from evolve.lineage import Record
from evolve.mutation.replaying import replay
from evolve.runtime.generators import preserved_rng
from evolve.surgery.transaction import Transaction
from evolve.training.restoring import replay_bounded
from evolve.training.snapshot import Snapshot


class BaseModel:
    """A model as it is before its first mutation, remembered on creation.

    A copy of its weights is kept in the memory of the host.

    Args:
        model: The model, which may be mutated from now on.
        optimizers: What trains it, where that is to follow; none if it is built later.

    Attributes:
        model: The model as it stands, the same object.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> None:
        self.model = model
        self._optimizers = list(optimizers)
        self._snapshot = Snapshot(model, self._optimizers)

    def become(
        self, wanted: Iterable[Record], standing: Iterable[Record], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Gives the model the architecture that records lead to, in place; weights are to be loaded afterwards.

        Mutations that are wanted and not yet there are made. Where others are there, the model first goes back to the
        base model, and with it its optimizers: their state is then as new.

        Args:
            wanted: The records of a checkpoint.
            standing: Those that led to the model as it is.
            tensors: What the model's parameters and buffers are to be, by name: nothing larger is built.

        Raises:
            EvolveError: If the records do not fit; the model is as before then.
        """
        here, there = _applied(standing), _applied(wanted)
        common = len(here) if [*map(_what, there[: len(here)])] == [*map(_what, here)] else 0
        with preserved_rng(), Transaction(self.model, self._optimizers):
            if common < len(here):
                self._go_back()
            if tensors is None:
                replay(self.model, there[common:], self._optimizers)
            else:
                replay_bounded(self.model, there[common:], tensors, self._optimizers)

    def _go_back(self) -> None:
        training = self.model.training
        device = next((parameter.device for parameter in self.model.parameters()), None)
        self._snapshot.restore()
        self.model.to(device).train(training)  # the base may have been remembered before it was moved


def written(records: Iterable[Record]) -> list[str]:
    """Returns records as JSON texts."""
    return [record.model_dump_json() for record in records]


def read(texts: Any, source: object) -> list[Record]:
    """Returns the records that `written` made texts of.

    Raises:
        CheckpointError: If one is none.
    """
    try:
        return [Record.model_validate_json(text) for text in texts]
    except (ValidationError, TypeError) as error:
        raise CheckpointError(f"The records in '{source}' are damaged: {error}") from error


def _applied(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.status == "applied"]


def _what(record: Record) -> tuple[Any, ...]:
    """What replay looks at."""
    return record.operator, record.site, record.root, record.seed, record.options, record.plan, record.params_after
