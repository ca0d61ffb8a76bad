"""A run in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from evolve.lineage import Record
from evolve.training.events import EpochEnded, Event, RunBegun, RunFinished, StepMade
from evolve.training.loggers import Logger, loggers, told


@loggers.register("tensorboard")
class TensorBoardLogger(Logger):
    """Writes metrics as scalars and mutations as texts, by optimizer steps.

    What a run went back over is purged: TensorBoard does not show it.

    Args:
        dir: The folder that `tensorboard --logdir` is given, or one above it.
        loss_every: Optimizer steps between two losses; 0 for none.
    """

    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def __init__(self, dir: str, loss_every: int = 10) -> None:
        super().__init__(loss_every)
        self._dir = dir
        self._writer: Any = None
        self._last = 0  # the highest step that was logged

    def __call__(self, event: Event) -> None:
        """Logs what an event tells."""
        if isinstance(event, StepMade) and event.step <= self._last:
            self._open(event.step)
        super().__call__(event)
        if isinstance(event, EpochEnded):
            self._writer.flush()

    def begin(self, event: RunBegun) -> None:
        """Opens a file; of a run before this one nothing is shown from here on."""
        self._open(event.step + 1 if event.step else 0)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._last = max(self._last, step)

    def mutation(self, record: Record, applied: int) -> None:
        """Writes a text at the step of the mutation, and how many there are now."""
        step = record.step or 0
        self._writer.add_text(f"mutations/{record.index}", told(record), step)
        self._writer.add_scalar("mutations_applied", applied, step)
        self._last = max(self._last, step)

    def end(self, event: RunFinished) -> None:
        """Closes the file."""
        self._writer.close()

    def _open(self, purge: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(self._dir, purge_step=purge)
        self._last = max(0, purge - 1)
