"""Which part of a batch is whose."""

from __future__ import annotations


def part_of(samples: int, rank: int, size: int) -> tuple[int, int, float]:
    """Returns first and end of a rank's samples of a batch, and what its mean loss weighs in the mean of the gradients.

    The parts lie one after the other and differ by one sample at most. DDP averages gradients over the ranks, so that
    a part weighs as many times the number of ranks as it is of the batch: the average is the gradient of the whole
    batch then. No part is a single sample, of which BatchNorm could not make statistics, unless the batch is. A rank
    that has none left runs the first samples, which weigh nothing, as DDP waits for all ranks.

    Args:
        samples: Of the whole batch.
        rank: Whose part.
        size: How many ranks there are.
    """
    busy = min(size, max(1, samples // 2))
    if rank >= busy:
        return 0, min(2, samples), 0.0
    first, end = samples * rank // busy, samples * (rank + 1) // busy
    return first, end, (end - first) * size / samples
