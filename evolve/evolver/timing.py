"""When the next mutation is due, as the schedule says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evolve.config.options import Monitor
from evolve.errors import CheckpointError
from evolve.schedules import Clock, Schedule


class Timing:
    """Asks a schedule, and remembers that a mutation is due until it can be made.

    Attributes:
        schedule: None where no mutation is ever due by itself.
        due: Why a mutation is due; None where none is.

    Args:
        schedule: The schedule.
        monitor: The metric that it looks at, unless its options name another.
    """

    def __init__(self, schedule: Schedule | None, monitor: Monitor) -> None:
        self.schedule = schedule
        if schedule is not None:
            schedule.follow(monitor)
        self.due: str | None = None

    def asks(self, epoch_end: bool) -> bool:
        """Whether there is a schedule to ask after a step, which was the last of its epoch or was not."""
        return self.schedule is not None and (epoch_end or not self.schedule.at_epoch_ends)

    def ask(self, clock: Clock) -> None:
        """Asks the schedule; to be called after each optimizer step for which `asks`."""
        if self.schedule is not None:
            reason = self.schedule.due(clock)
            self.due = self.due or reason

    def take(self) -> str:
        """Returns why a mutation is due, which it then is no longer."""
        reason, self.due = self.due or "asked for", None
        return reason

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {"schedule": named_state(self.schedule), "due": self.due}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned.

        Raises:
            CheckpointError: If it is of another schedule.
        """
        load_named_state(self.schedule, state["schedule"], "evolution.schedule")
        self.due = state["due"]


def named_state(part: Any) -> dict[str, Any] | None:
    """Returns the state of a schedule or policy together with its name; None where there is none."""
    return None if part is None else {"name": part.name, "state": part.state()}


def load_named_state(part: Any, saved: Mapping[str, Any] | None, key: str) -> None:
    """Gives a schedule or policy its state back.

    Args:
        part: The schedule or policy; None where there is none.
        saved: What `named_state` returned.
        key: Where it is configured.

    Raises:
        CheckpointError: If the state is that of another kind.
    """
    was, here = (saved["name"] if saved else None), (part.name if part is not None else None)
    if was != here:
        raise CheckpointError(f"The run was saved with {key}: {was}; this one has {here}. Configure it as it was.")
    if saved is not None:
        part.load_state(saved["state"])
