"""Windows of a long row of tokens, cut when a batch is made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evolve.data.batches import OrderedBatches
from evolve.data.trees import Batch
from evolve.errors import DataError


class WindowBatches(OrderedBatches):
    """Batches of windows of a row of tokens, with the next token of each position as label.

    The row is kept once, in its own dtype, and may be memory-mapped; a batch is one gather.

    Args:
        tokens: All tokens in a row, of shape (T,) and any dtype of whole numbers.
        context: Tokens that a model sees.
        batch_size: Windows in a batch.
        stride: Tokens from the start of one window to the next.
        samples: Most windows, spread evenly over the row; None for all.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of the order.

    Raises:
        DataError: If no window fits, or a number is less than one.
    """

    def __init__(
        self,
        tokens: Tensor,
        context: int,
        batch_size: int,
        *,
        stride: int,
        samples: int | None = None,
        shuffle: bool,
        seed: int = 0,
    ) -> None:
        for name, value in (("context", context), ("stride", stride), ("samples", samples)):
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1, not {value}.")
        if len(tokens) <= context:
            raise DataError(
                f"{len(tokens)} tokens do not fill one window of {context} and the token after it. Lower context, or "
                "give more data or another val_fraction."
            )
        starts = torch.arange(0, len(tokens) - context, stride)
        if samples is not None and samples < len(starts):
            starts = starts[torch.arange(samples) * len(starts) // samples]
        super().__init__(len(starts), batch_size, shuffle, seed)
        self.tokens = tokens
        self.context = context
        self._starts = starts
        self._span = torch.arange(context + 1)

    def classes(self) -> None:
        """Returns None: a window has no class."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches `{"input_ids", "labels"}` of one epoch, from batch `start` on."""
        order = self.order(epoch)
        starts = self._starts if order is None else self._starts[order]
        for first, end in self._bounds[start:]:
            yield self._cut(starts[first:end])

    def examples(self, n: int) -> Batch:
        """Returns the first `n` windows."""
        return self._cut(self._starts[:n])

    def _cut(self, starts: Tensor) -> dict[str, Tensor]:
        windows = self.tokens[starts[:, None] + self._span].long()
        return {"input_ids": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()}
