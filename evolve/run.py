"""What a run is: the folder it is written to, what it counts, and what came of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from evolve.checkpoint import FOLDER
from evolve.config import Section
from evolve.errors import EvolveError
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import probe
from evolve.training import StepResult, TrainState

logger = logging.getLogger(__name__)


class OutputConfig(Section):
    """Where a run is written.

    Attributes:
        dir: The run folder; null writes nothing.
        checkpoint_every: Epochs between checkpoints; the end of the run and a stop are always saved.
        keep: Checkpoints to keep.
        overwrite: Remove a run that lies in the folder already, instead of refusing to start.
    """

    dir: str | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    keep: Annotated[int, Field(ge=1)] = 2
    overwrite: bool = False


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        metrics: The last epoch's line: `val_accuracy`, `val_loss`, `train_loss`, ...; empty before the first epoch end.
        applied: Mutations applied; likewise `refused`.
        params_from: Parameters at the start; likewise `params_to`.
        folder: Where the run lies, if anywhere.
        progress: Which part of the budget is spent, from 0 to 1.
        finished: Whether all of it is.
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
    signal: int | None


@dataclass
class Meter:
    """Sums over the steps of the running epoch, which began when the run had taken `since` seconds."""

    loss: float = 0.0
    samples: int = 0
    correct: int | None = 0
    since: float = 0.0
    _hits: list[Tensor] = field(default_factory=list)  # not counted yet: that would wait for the device

    def add(self, result: StepResult) -> None:
        """Takes in one optimizer step."""
        self.loss += result.loss * result.samples
        self.samples += result.samples
        if not result.hits:
            self.correct = None
        self._hits += result.hits
        if len(self._hits) >= 256:
            self._count()

    def line(self, state: TrainState, val: Mapping[str, float]) -> dict[str, Any]:
        """Returns the line of metrics of the epoch that is over, with those of its evaluation."""
        self._count()
        accuracy = {} if self.correct is None else {"train_accuracy": self.correct / self.samples}
        return {
            "epoch": state.epoch,
            "step": state.step,
            "train_loss": self.loss / self.samples,
            **accuracy,
            **{f"val_{name}": value for name, value in val.items()},
            "lr": state.lr,
            "seconds": state.seconds - self.since,
            "flops": state.flops,
            "progress": state.progress,
        }

    def state(self) -> dict[str, Any]:
        """Returns the sums as JSON values, for a resumed run."""
        self._count()
        return {"loss": self.loss, "samples": self.samples, "correct": self.correct, "since": self.since}

    def _count(self) -> None:
        if self._hits and self.correct is not None:
            self.correct += int(torch.cat(self._hits).sum())
        self._hits = []


def flops_per_sample(model: nn.Module, inputs: Tensor, needed: bool) -> int:
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


def begin_folder(folder: Path, overwrite: bool, config_text: str | None) -> None:
    """Makes a run folder, with the resolved configuration where there is one.

    Raises:
        EvolveError: If it holds a run already and may not be written over.
    """
    if (folder / "lineage.jsonl").exists() or (folder / FOLDER).exists():
        if not overwrite:
            raise EvolveError(
                f"'{folder}' holds a run already. Go on with it (`evolve resume {folder}`), or write elsewhere "
                "(output.dir=...), or over it (output.overwrite=true)."
            )
        for name in ("lineage.jsonl", "metrics.jsonl", "config.yaml"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if config_text is not None:
        (folder / "config.yaml").write_text(config_text, encoding="utf-8")
