"""Whether a forward drops the first positions of a sequence, as a convolution without padding makes it do."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Crops(TorchDispatchMode):
    """Looks for slices that drop the first positions of a sequence.

    Args:
        count: Positions of the input.
        size: Positions of the output.

    Attributes:
        found: Whether there was one.
    """

    def __init__(self, count: int, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.size, self.found = count, size, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and looks at it."""
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.slice.Tensor and args[0].dim() > 2:
            dim = args[1] if len(args) > 1 else 0
            before, after = args[0].shape[dim], out.shape[dim]
            to_the_end = len(args) < 4 or args[3] is None or args[3] >= before
            self.found |= to_the_end and self.size <= after < before <= self.count
        return out
