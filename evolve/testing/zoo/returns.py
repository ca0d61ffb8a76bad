"""Models that return something else than a tensor, and one that keeps an island of another precision."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Answer:
    """What `InDataclass` returns."""

    logits: Tensor
    hidden: list[Tensor]
    norm: float = 0.0


class InDataclass(nn.Module):
    """Returns a dataclass with a list and a number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.out = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Answer:
        """(N, 6) to logits (N, 3), the second hidden layer (N, 8) twice, and its norm."""
        hidden = F.gelu(self.hidden(F.gelu(self.first(x))))
        return Answer(self.out(hidden), [hidden, hidden.tanh()], float(hidden.detach().norm()))


class Fields(OrderedDict[str, Any]):
    """A dict whose keys are attributes too, as Hugging Face's ModelOutput is."""

    def __init__(self, **fields: Any) -> None:
        super().__init__({key: value for key, value in fields.items() if value is not None})
        self.__dict__.update(fields)


class InFields(nn.Module):
    """Returns fields, one of which is empty, and lists of lists in another."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Linear(5, 8), nn.Linear(8, 4)
        self.mix = nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Fields:
        """(N, 3, 5) to logits (N, 3, 4) and one hidden state (N, 3, 8) for each of two steps."""
        first = torch.tanh(self.embedding(x))
        second = first + self.mix(first)
        return Fields(loss=None, logits=self.out(second), states=[[first], [second]])


class NormInSingle(nn.Module):
    """Computes in bfloat16, and normalises in float32, as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(*sizes, dtype=torch.bfloat16) for sizes in ((6, 16), (16, 3)))
        self.norm = _SingleNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, 6) to (N, L, 3)."""
        y = self.norm(F.gelu(self.first(x)))
        return self.last(y)  # type: ignore[no-any-return]


class _SingleNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)
