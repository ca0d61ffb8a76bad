"""Learning rate schedules that torch does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from evolve.errors import CheckpointError, EvolveError

Shape = Literal["linear", "cosine", "sqrt"]


class StableDecayLR(LRScheduler):
    """Holds the learning rate, and lets it fall at the end: `wsd` without its warm-up.

    In the last `decay` steps x goes from 0 to 1, and the rate is `end + (1 - end) * f(x)` of the optimizer's: `linear`
    is 1 - x, `cosine` half a period, `sqrt` 1 - sqrt(x), which Hägele et al. (2024, Scaling laws and compute-optimal
    training beyond fixed training durations) found best. After Hu et al. (2024, MiniCPM).

    Args:
        optimizer: Whose learning rates are set.
        total_steps: How long the schedule is.
        decay: The steps in which the rate falls, or the part of the schedule if below 1.
        shape: How it falls.
        end: Factor of the learning rate at the end.

    Raises:
        EvolveError: If an option is out of its range.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, decay: float = 0.2, shape: Shape = "sqrt", end: float = 0.0
    ) -> None:
        if not 0 < decay <= total_steps:
            raise EvolveError(
                f"decay has to be a part between 0 and 1, or at most all {total_steps} steps; found {decay}"
            )
        if not 0 <= end <= 1:
            raise EvolveError(f"end is a factor of the learning rate between 0 and 1; found {end}")
        self.total_steps, self.shape, self.end = total_steps, shape, end
        self.decay = max(1, round(decay * total_steps if decay < 1 else decay))
        super().__init__(optimizer)

    @property
    def held(self) -> int:
        """Steps before the rate begins to fall."""
        return self.total_steps - self.decay

    def get_lr(self) -> list[Any]:
        """Returns the learning rate of each group at this step."""
        x = min(1.0, max(0.0, (self.last_epoch - self.total_steps + self.decay) / self.decay))
        falls = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "sqrt": 1 - math.sqrt(x)}
        return [rate * (self.end + (1 - self.end) * falls[self.shape]) for rate in self.base_lrs]


class WarmupLR(LRScheduler):
    """Lets the learning rates rise in a line to where another schedule begins, which then takes over.

    In step k of n (from 0) they are (k + 1) / (n + 1) of that.

    Args:
        optimizer: Whose learning rates are set.
        schedule: What follows; it was just made over the same optimizer.
        steps: How long it takes, at least 1.
    """

    def __init__(self, optimizer: Optimizer, schedule: LRScheduler, steps: int) -> None:
        # Not LRScheduler's own: `schedule` has prepared the optimizer already, and set the rates that are aimed at.
        self.optimizer = optimizer
        self.schedule = schedule
        self.steps = steps
        self.last_epoch = -1
        self._goal = [group["lr"] for group in optimizer.param_groups]
        self.step()

    @property
    def warming(self) -> bool:
        """Whether the learning rates are still rising."""
        return self.last_epoch < self.steps

    def step(self, epoch: int | None = None) -> None:
        """Moves on by one step of the warm-up; after its end nothing moves."""
        if not self.warming:
            return
        self.last_epoch += 1
        share = (self.last_epoch + 1) / (self.steps + 1) if self.warming else 1.0
        for group, rate in zip(self.optimizer.param_groups, self._goal, strict=True):
            group["lr"] = share * rate

    def get_last_lr(self) -> list[Any]:
        """Returns the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Returns where it stands, and where the schedule that follows does."""
        return {
            "steps": self.steps,
            "last_epoch": self.last_epoch,
            "goal": list(self._goal),
            "class": type(self.schedule).__name__,
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Raises:
            CheckpointError: If it was in front of another schedule.
        """
        was, here = state_dict["class"], type(self.schedule).__name__
        if was != here:
            raise CheckpointError(
                f"The warm-up was in front of {was}, this one is in front of {here}. Build it as it was."
            )
        self.steps, self.last_epoch = state_dict["steps"], state_dict["last_epoch"]
        self._goal = list(state_dict["goal"])
        self.schedule.load_state_dict(state_dict["schedule"])
