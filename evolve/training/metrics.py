"""What a run measures between two evaluations: sums over its steps, from which the line of an epoch is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evolve.data.trees import Batch
from evolve.structure.probe import count_parameters
from evolve.training import StepResult, TrainState, advance_schedule, evaluate

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


@dataclass
class Meter:
    """Sums over the steps of the running epoch, which began when the run had taken `since` seconds."""

    loss: float = 0.0
    weight: float = 0.0
    correct: int | None = 0
    answers: int = 0
    since: float = 0.0
    _hits: list[Tensor] = field(default_factory=list)  # not counted yet: that would wait for the device

    def add(self, result: StepResult) -> None:
        """Takes in one optimizer step."""
        self.loss += result.loss * result.weight
        self.weight += result.weight
        if not result.hits:
            self.correct = None
        self._hits += result.hits
        if len(self._hits) >= 256:
            self._count()

    def measure(self, state: TrainState, held_out: Iterable[Batch]) -> dict[str, Any]:
        """Evaluates; returns the line of what was trained since the last one, and begins the next."""
        val = evaluate(state, held_out)
        state.count_time()
        line = self.line(state, val)
        self.start_over(state.seconds)
        advance_schedule(state, "epoch", val)
        return line

    def line(self, state: TrainState, val: Mapping[str, float]) -> dict[str, Any]:
        """Returns the line of metrics of the epoch that is over, with those of its evaluation."""
        self._count()
        accuracy = {} if self.correct is None else {"train_accuracy": self.correct / max(self.answers, 1)}
        return {
            "epoch": state.epoch,
            "step": state.step,
            "train_loss": self.loss / self.weight if self.weight else math.nan,
            **accuracy,
            **{f"val_{name}": value for name, value in val.items()},
            "lr": state.lr,
            "seconds": state.seconds - self.since,
            "flops": state.flops,
            "progress": state.progress,
            "params": count_parameters(state.model),
        }

    def bring_up_to_date(self, line: dict[str, Any], state: TrainState) -> None:
        """Lets the last line of a run tell what mutations have spent since it was written."""
        seconds = line["seconds"] + state.seconds - self.since
        line |= {"flops": state.flops, "progress": state.progress, "seconds": seconds}
        self.since = state.seconds

    def start_over(self, since: float) -> None:
        """Begins the next epoch, when the run has taken so many seconds."""
        self.loss, self.weight, self.since = 0.0, 0.0, since
        self.correct, self.answers, self._hits = 0, 0, []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.start_over(state["since"])
        samples = state.get("samples")  # of older checkpoints, which counted these alone
        self.loss, self.correct = state["loss"], state["correct"]
        self.weight, self.answers = state.get("weight", samples), state.get("answers", samples)

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums as JSON values, for a resumed run."""
        self._count()
        names = ("loss", "weight", "correct", "answers", "since")
        return {name: getattr(self, name) for name in names}

    def _count(self) -> None:
        if self._hits and self.correct is not None:
            hits = torch.cat(self._hits)
            self.correct, self.answers = self.correct + int(hits.sum()), self.answers + len(hits)
        self._hits = []
