"""What a run shows: one live line in a terminal, one line an epoch elsewhere (a file, a notebook)."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm
from typing_extensions import Self

from evolve.budget import Budget
from evolve.training.eta import Eta
from evolve.training.events import EpochEnded, Event, ForecastMade, MutationTried, RunBegun, StepMade
from evolve.training.lines import epoch_lines, mutation_lines, run_time, where


class Progress:
    """Shows a run as it goes.

    Args:
        budget: How long the run is.
        steps: Optimizer steps of one epoch.

    Attributes:
        hears: Of which events it is to be told: of each step where there is a live line alone.
    """

    def __init__(self, budget: Budget, steps: int) -> None:
        self._budget = budget
        self._steps = steps
        self._live = sys.stdout.isatty()
        self._bar: Any = None
        self._eta = Eta()
        self.hears = (RunBegun, EpochEnded, ForecastMade, MutationTried, *((StepMade,) if self._live else ()))

    def __enter__(self) -> Self:
        if self._live:
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
        if isinstance(event, RunBegun):
            self._eta = Eta()  # a run that was stopped does not count the time in between
            self._eta.see(event.progress)
        elif isinstance(event, StepMade):
            self._eta.see(event.progress)
            self._step(event)
        elif isinstance(event, EpochEnded):
            self._eta.see(event.metrics["progress"])  # with the evaluation
            self._write(epoch_lines(event.metrics, self._budget, left=self._eta.left))
        elif isinstance(event, ForecastMade):
            self._write([event.text])
        elif isinstance(event, MutationTried):
            self._write(mutation_lines(event.record))

    def _step(self, step: StepMade) -> None:
        if self._bar is None:
            return
        self._bar.set_description(where(step.epoch + 1, step.progress, self._budget), refresh=False)
        if step.epoch_step <= 1 or self._bar.n > step.epoch_step:
            self._bar.reset()
        self._bar.set_postfix_str(run_time(self._eta.elapsed, self._eta.left), refresh=False)
        self._bar.update(step.epoch_step - self._bar.n)

    def _write(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
