"""What a run shows: one live line in a terminal, one line an epoch elsewhere (a file, a notebook)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm
from typing_extensions import Self

from evolve.budget import Budget
from evolve.lineage import Record
from evolve.training.events import EpochEnded, Event, MutationTried, StepMade


class Progress:
    """Shows a run as it goes.

    Args:
        budget: How long the run is.
        steps: Optimizer steps of one epoch.
    """

    def __init__(self, budget: Budget, steps: int) -> None:
        self._budget = budget
        self._steps = steps
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self._bar = tqdm(total=self._steps, leave=False, file=sys.stdout, dynamic_ncols=True, unit="step")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        if isinstance(event, StepMade):
            self._step(event)
        elif isinstance(event, EpochEnded):
            self._epoch(event.metrics)
        elif isinstance(event, MutationTried):
            self._mutation(event.record)

    def _step(self, step: StepMade) -> None:
        if self._bar is None:
            return
        self._bar.set_description(self._where(step.epoch + 1, step.progress), refresh=False)
        if step.epoch_step <= 1 or self._bar.n > step.epoch_step:
            self._bar.reset()
        self._bar.update(step.epoch_step - self._bar.n)

    def _epoch(self, metrics: Mapping[str, Any]) -> None:
        def part(kind: str) -> str:
            accuracy = metrics.get(f"{kind}_accuracy")
            loss = metrics.get(f"{kind}_loss")
            words = [f"{kind} loss {loss:.4f}"] if loss is not None else []
            return " ".join([*words, f"acc {accuracy:7.2%}"] if accuracy is not None else words)

        self._write(
            f"{self._where(metrics['epoch'], metrics['progress'])}  {part('train')}  {part('val')}  "
            f"lr {metrics['lr']:.2g}  params {metrics['params']:,}  {metrics['seconds']:.1f} s"
        )

    def _mutation(self, record: Record) -> None:
        sign = "+" if record.success else "-"
        state = "" if record.success else f" {record.status.replace('_', ' ')}:"
        self._write(f"  {sign} {record.operator} at '{record.site}':{state} {record.message}")

    def _where(self, epoch: int, progress: float) -> str:
        """Says which epoch it is, of how many or, where epochs are not the budget, which part of it is spent."""
        if self._budget.unit != "epochs":
            return f"epoch {epoch:>3} {progress:>6.1%}"
        epochs = f"{self._budget.amount:g}"
        return f"epoch {epoch:>{len(epochs)}}/{epochs}"

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
