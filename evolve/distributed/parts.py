"""Which part of a batch is whose."""

from __future__ import annotations


def part_of(samples: int, rank: int, size: int) -> tuple[int, int, bool]:
    """Returns first and end of a rank's samples of a batch, and whether they count.

    The parts lie one after the other and differ by one sample at most. No part is a single sample, of which BatchNorm
    could not make statistics, unless the batch is. A rank that has none left runs the first samples, which do not
    count, as DDP waits for all ranks.

    Args:
        samples: Of the whole batch.
        rank: Whose part.
        size: How many ranks there are.
    """
    busy = min(size, max(1, samples // 2))
    if rank >= busy:
        return 0, min(2, samples), False
    return samples * rank // busy, samples * (rank + 1) // busy, True
