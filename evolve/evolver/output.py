"""What a run is: the folder it is written to, and what came of it."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from evolve.config import Section
from evolve.errors import EvolveError
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import count_parameters, probe

logger = logging.getLogger(__name__)


class OutputConfig(Section):
    """Where a run is written.

    Attributes:
        dir: The run folder; null writes nothing.
        checkpoint_every: Epochs between checkpoints; the end of the run and a stop are always saved.
        keep: Checkpoints to keep.
        overwrite: Remove an existing run from the folder instead of refusing to start.
    """

    dir: str | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    keep: Annotated[int, Field(ge=1)] = 2
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """The run folder.

        Raises:
            EvolveError: If there is none.
        """
        if self.dir is None:
            raise EvolveError("This Evolver has no run folder. Give it one: output='runs/mine'.")
        return Path(self.dir)


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        metrics: The last epoch's line, or with `training.keep_best` that of the epoch whose weights the model has:
            `val_accuracy`, `val_loss`, `train_loss`, ...; empty before the first epoch end.
        applied: Mutations applied; likewise `refused`.
        params_from: Parameters at the start; likewise `params_to`.
        folder: Where the run lies, if anywhere.
        progress: Which part of the budget is spent, from 0 to 1.
        finished: Whether the run is over: its whole budget is spent, or its patience is at an end.
        stopped_early: Whether it was patience.
        signal: The signal that stopped the run, if one did.
    """

    metrics: dict[str, Any]
    applied: int
    refused: int
    params_from: int
    params_to: int
    folder: Path | None
    progress: float
    finished: bool
    stopped_early: bool
    signal: signal.Signals | None


def result_of(run: Any, params_from: int, folder: Path | None, number: int | None) -> RunResult:
    """Returns what came of a run.

    Args:
        run: The Evolver.
        params_from: Parameters at the start.
        folder: Where the run lies, if anywhere.
        number: Of the signal that stopped it, if one did.
    """
    applied = len(run.lineage.applied)
    last = run.history[-1] if run.history else {}
    kept = run.state.best.line if run.finished and run.state.best else None
    return RunResult(
        metrics=dict(kept or last),
        applied=applied,
        refused=len(run.lineage) - applied,
        params_from=params_from,
        params_to=count_parameters(run.model),
        folder=folder,
        progress=run.state.progress,
        finished=run.finished,
        stopped_early=run.stopped_early,
        signal=signal.Signals(number) if number else None,
    )


def flops_per_sample(model: nn.Module, inputs: Any, needed: bool) -> int:
    """Returns the FLOPs of a forward pass of one sample; 0 where they cannot be counted and are not needed.

    Raises:
        EvolveError: If they are needed and the model fails on the inputs.
    """
    try:
        return probe(model, as_inputs(model, inputs)).flops or 0
    except Exception as error:  # whatever a user's forward raises
        fault = (
            f"FLOPs cannot be counted: {type(model).__name__} fails on the probe batch: {type(error).__name__}: {error}"
        )
        if needed:
            raise EvolveError(fault) from error
        logger.info("%s", fault)  # where the model does not fit its data at all, the run tells it as it begins
        return 0
