"""What goes wrong in a step that a mutation can be blamed for."""

from __future__ import annotations

import math

from torch import nn

from evolve.errors import NonFiniteLossError
from evolve.training.finite import nonfinite


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
