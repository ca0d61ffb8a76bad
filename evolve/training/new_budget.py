"""A run that goes on with a budget other than the one it was saved with: trained longer, or counted in other units."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from evolve.budget import Budget
from evolve.training.lr_curves import WarmupLR
from evolve.training.state import TrainState
from evolve.training.step import advance_schedule


def budget_of(progress: Mapping[str, Any]) -> Budget | None:
    """Returns the budget that a checkpoint was written with; None where it does not say."""
    saved = progress.get("budget")
    return None if saved is None else Budget(saved["unit"], saved["amount"])


def take_new_budget(state: TrainState, progress: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> None:
    """Lets a restored state count by the budget it has now, and its learning rate schedule with it.

    Where the budget is the old one, the schedule goes on where it was. Where it is another one, the schedule is laid
    over that from the beginning: the learning rate jumps to where it would stand now. One that has no length, as it
    looks at the loss, goes on. The lines of metrics tell which part of the present budget they stand at.

    Args:
        state: All of it but the schedule is restored.
        progress: Of the checkpoint.
        scheduler: The state of the schedule, as it was saved.
    """
    before, now = budget_of(progress), state.config.budget
    changed = before is not None and before != now
    if changed and before is not None:
        part = before.progress(state.spent)
        for line in progress["history"]:
            line["progress"] *= state.progress / part if part else 1.0
    if state.scheduler is None or scheduler is None:
        return
    inner = state.scheduler.schedule if isinstance(state.scheduler, WarmupLR) else state.scheduler
    if changed and state.lr_schedule is not None and not isinstance(inner, ReduceLROnPlateau):
        _lay_anew(state)
    else:
        state.scheduler.load_state_dict(dict(scheduler))


def _lay_anew(state: TrainState) -> None:
    assert state.lr_schedule is not None
    for group in state.optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
    state.scheduler = state.lr_schedule.build(state.optimizer, state.ticks, state.epoch_steps)
    with warnings.catch_warnings():  # torch misses an optimizer step, which the run made before it was stopped
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        for interval in ("step", "epoch"):
            advance_schedule(state, interval)
