"""What a run measures: a line of metrics for each epoch, from the sums over its steps and an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evolve.structure.probe import count_parameters
from evolve.training import StepResult, TrainState

# Keys of a line of metrics; those of accuracy are there where targets are class numbers.
METRICS = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "seconds",
    "flops",
    "progress",
    "params",
)


class Metrics:
    """The lines of a run, mirrored to `metrics.jsonl`.

    Attributes:
        lines: One for each finished epoch; the last may be of a part of one, where the run ended.

    Args:
        folder: Of the run; None keeps the lines in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.lines: list[dict[str, Any]] = []
        self._folder = folder
        self._meter = Meter()

    @property
    def pending(self) -> bool:
        """Whether steps were made since the last line."""
        return self._meter.samples > 0

    def add(self, result: StepResult) -> None:
        """Takes in an optimizer step."""
        self._meter.add(result)

    def write(self, state: TrainState, val: Mapping[str, float]) -> None:
        """Adds the line of what was trained since the last one, with the metrics of an evaluation."""
        self.lines.append(self._meter.line(state, val))
        self._meter = Meter(since=state.seconds)
        self._mirror()

    def close(self, state: TrainState) -> None:
        """Brings what the last line says was spent up to the end of the run: mutations may have spent since."""
        if self.lines:
            seconds = self.lines[-1]["seconds"] + state.seconds - self._meter.since
            self.lines[-1] |= {"flops": state.flops, "progress": state.progress, "seconds": seconds}
            self._meter.since = state.seconds
            self._mirror()

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {"history": list(self.lines), "meter": self._meter.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned; lines that were written since are gone."""
        self.lines, self._meter = list(state["history"]), Meter(**state["meter"])
        self._mirror()

    def _mirror(self) -> None:
        if self._folder is not None:
            lines = "".join(json.dumps(line) + "\n" for line in self.lines)
            (self._folder / "metrics.jsonl").write_text(lines, encoding="utf-8")


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
            "params": count_parameters(state.model),
        }

    def state(self) -> dict[str, Any]:
        """Returns the sums as JSON values, for a resumed run."""
        self._count()
        return {"loss": self.loss, "samples": self.samples, "correct": self.correct, "since": self.since}

    def _count(self) -> None:
        if self._hits and self.correct is not None:
            self.correct += int(torch.cat(self._hits).sum())
        self._hits = []
