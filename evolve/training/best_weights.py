"""The weights of a run's best epoch, kept in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from evolve.care.ema import EMA
from evolve.config.options import Monitor
from evolve.training.events import EpochEnded, Event


class BestWeights:
    """Listens to a run, and keeps the weights of the best epoch since the last mutation.

    They are those that were evaluated: averaged ones where there are. Weights from before a mutation do not fit the
    model any more; the best checkpoint of the run's folder has those.

    Args:
        model: The model.
        ema: The average of its weights, if there is one.
        monitor: The metric that tells which epoch is the best.

    Attributes:
        line: The metrics of that epoch; None where there is none yet.
        in_place: Whether the model has its weights.
    """

    def __init__(self, model: nn.Module, ema: EMA | None, monitor: Monitor) -> None:
        self.line: dict[str, Any] | None = None
        self.in_place = False
        self._model, self._ema, self._monitor = model, ema, monitor
        self._mutations = 0  # that the model had then
        self._weights: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Keeps the weights where the epoch that has ended is the best."""
        if isinstance(event, EpochEnded):
            self._look(event.metrics, len(event.run.lineage.applied))

    def _look(self, line: Mapping[str, Any], mutations: int) -> None:
        if mutations != self._mutations:
            self.line, self._weights, self._mutations = None, {}, mutations
        metric = self._monitor.metric
        value = line.get(metric, math.nan)
        if not math.isfinite(value) or (self.line and not self._monitor.better(value, self.line[metric])):
            return
        self.line = dict(line)
        with self._ema.applied_to(self._model) if self._ema else nullcontext():
            self._weights = copy.deepcopy(self._model.state_dict())

    def put_back(self) -> None:
        """Gives the model the weights of its best epoch, if there was one."""
        if self.line is not None:
            self._model.load_state_dict(self._weights)
            self.in_place = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the line and the weights."""
        return {"line": self.line, "mutations": self._mutations, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.line, self._mutations, self._weights = state["line"], state["mutations"], dict(state["weights"])
        self.in_place = False
