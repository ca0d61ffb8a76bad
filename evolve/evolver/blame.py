"""What goes wrong in a step that a mutation can be blamed for, and the way back to before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from evolve.errors import NonFiniteLossError
from evolve.runtime.memory import free_memory
from evolve.training.finite import nonfinite
from evolve.training.snapshot import Snapshot


@dataclass(frozen=True)
class WayBack:
    """What was before a mutation.

    Attributes:
        snapshot: All that training moves.
        timing: The state of the schedule.
        epochs: Lines of the history.
    """

    snapshot: Snapshot
    timing: dict[str, Any]
    epochs: int

    def take(self) -> None:
        """Puts back all that training moves."""
        self.snapshot.restore()
        free_memory()


def non_finite(model: nn.Module, loss: float, step: int) -> NonFiniteLossError | None:
    """Returns what is NaN or infinite after a step: its loss, or a parameter that is trained.

    Args:
        model: After the step.
        loss: Of the step.
        step: Optimizer steps made before it.
    """
    if not math.isfinite(loss):
        return NonFiniteLossError(f"The loss became {loss} at step {step}.")
    found = nonfinite((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return NonFiniteLossError(f"'{found[0]}' became NaN or infinite at step {step}.") if found else None


def one_line(error: Exception) -> str:
    """Returns an error's kind and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
