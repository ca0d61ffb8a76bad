"""Which samples stand in which batch: a pure function of (seed, epoch), so that a run can resume anywhere."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

_MASK = 2**64 - 1


def mix(*values: int) -> int:
    """Returns a well-spread 64-bit seed for a tuple of integers (SplitMix64 over each in turn)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    # torch's CPU generator reads only the low 32 bits of a seed; fold the high ones in.
    return state ^ (state >> 32)


def batch_bounds(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Cuts `samples` into batches of `batch_size`; the last one may be smaller.

    A last batch of one sample is merged into the batch before it, because BatchNorm cannot train on a single value
    per channel. No sample is ever left out.
    """
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and batch_size > 1 and samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


Sampler: TypeAlias = Literal["shuffle", "sequential", "balanced"]
"""How an epoch is drawn: in an order of its own, in the stored one, or with replacement, all classes equally often."""


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """Returns the permutation of an epoch, without touching the global random state."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(mix(seed, epoch)))


def balanced_order(classes: Tensor, seed: int, epoch: int) -> Tensor:
    """Returns as many indices as there are samples, drawn with replacement: first a class, then one of its samples.

    So each sample is drawn in inverse proportion to how often its class occurs. The global random state is not touched.

    Args:
        classes: Class number of each sample, of shape (N,).
        seed: Seed of all epochs.
        epoch: Number of the epoch.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    members = classes.argsort(stable=True)
    counts = classes.unique(return_counts=True)[1]
    first = counts.cumsum(0) - counts
    drawn = torch.randint(len(counts), (len(classes),), generator=generator)
    # In double precision, as a large class has more members than float32 tells apart.
    within = (torch.rand(len(classes), generator=generator, dtype=torch.float64) * counts[drawn]).long()
    return members[first[drawn] + within]
