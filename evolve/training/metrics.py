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

_COUNTED_AT_ONCE = 32  # steps: more would save little, and hold on to more outputs
_HITS_AT_ONCE = 256

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
    """Sums over the steps of the running epoch, which began when the run had taken `since` seconds.

    Attributes:
        state: What is trained, and what a batch weighs.
    """

    state: TrainState
    loss: float = 0.0
    weight: float = 0.0
    correct: int | None = 0
    answers: int = 0
    since: float = 0.0
    _hits: list[Tensor] = field(default_factory=list)  # not counted yet: that would wait for the device
    _kept: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)  # loss, scores, targets: not counted yet

    def add(self, result: StepResult) -> None:
        """Takes in one optimizer step."""
        kept = result.passes[0].kept
        if kept is not None:
            self._kept.append((result.loss, *kept))
            if len(self._kept) >= _COUNTED_AT_ONCE:
                self._weigh()
            return
        if self._kept:
            self._weigh()
        self._add(result.loss, sum([one.weight or 0.0 for one in result.passes]))
        hits = [one.hits for one in result.passes if one.hits is not None]
        self._hit(hits)

    @property
    def began(self) -> bool:
        """Whether anything was trained since the last line."""
        return self.weight > 0 or bool(self._kept)

    def measure(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        """Evaluates; returns the line of what was trained since the last one, and begins the next."""
        state = self.state
        val = evaluate(state, held_out)
        state.count_time()
        line = self.line(val)
        self.start_over(state.seconds)
        advance_schedule(state, "epoch", val)
        return line

    def line(self, val: Mapping[str, float]) -> dict[str, Any]:
        """Returns the line of metrics of the epoch that is over, with those of its evaluation."""
        self._count()
        state = self.state
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

    def bring_up_to_date(self, line: dict[str, Any]) -> None:
        """Lets the last line of a run tell what mutations have spent since it was written."""
        state = self.state
        seconds = line["seconds"] + state.seconds - self.since
        line |= {"flops": state.flops, "progress": state.progress, "seconds": seconds}
        self.since = state.seconds

    def start_over(self, since: float) -> None:
        """Begins the next epoch, when the run has taken so many seconds."""
        self.loss, self.weight, self.since = 0.0, 0.0, since
        self.correct, self.answers, self._hits, self._kept = 0, 0, [], []

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

    def _add(self, loss: float, weight: float) -> None:
        self.loss += loss * weight
        self.weight += weight

    def _hit(self, hits: list[Tensor]) -> None:
        if not hits:
            self.correct = None
        self._hits += hits
        if len(self._hits) >= _HITS_AT_ONCE:
            self._count_hits()

    def _weigh(self) -> None:
        """Weighs the steps that were kept, and looks for their right answers: all at once, which is cheaper."""
        losses, scores, targets = zip(*self._kept, strict=True)
        self._kept = []
        batch = (None, torch.cat(targets))
        alike = self.state.task.weight(batch) == len(batch[1])  # all count, so each batch weighs as many as it has
        for loss, some in zip(losses, targets, strict=True):
            self._add(loss, some.shape[0] if alike else self.state.task.weight((None, some)))
        hits = self.state.task.right_answers(torch.cat(scores), batch) if self.state.counts_answers else None
        self._hit([] if hits is None else [hits])

    def _count(self) -> None:
        if self._kept:
            self._weigh()
        self._count_hits()

    def _count_hits(self) -> None:
        if self._hits and self.correct is not None:
            hits = torch.cat(self._hits)
            self.correct, self.answers = self.correct + int(hits.sum()), self.answers + len(hits)
        self._hits = []
