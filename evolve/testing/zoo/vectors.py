"""Models of vectors: what a forward can be like."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TwoInputs(nn.Module):
    """Takes keyword arguments, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """(N, 4) and (N, 3) to a dict of (N, 6)."""
        return {"sum": self.left(a) + self.right(b), "left": torch.tanh(self.left(a))}


class ControlFlow(nn.Module):
    """A branch that depends on the data, a layer called twice, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6) to (N, 3)."""
        x = F.relu(self.shared(x))
        if x.sum() >= 0:
            x = self.shared(x)
        return self.out(x)  # type: ignore[no-any-return]


class IteratesChildren(nn.Module):
    """Chains its own children: what is registered among them would run as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) to (N, 7)."""
        for child in self.children():
            x = child(x)
        return x


class Gated(nn.Module):
    """A gate from one half of a layer's units, as in GLU; two heads that return a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(8, 6)
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 6) to (N, 2) and (N, 3)."""
        gate, value = self.up(x).chunk(2, dim=-1)
        x = x + self.down(F.silu(gate) * value)
        return self.one(x), self.two(x)


class Shared(nn.Module):
    """A block that is called twice, and a layer that goes by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.block = nn.Sequential(nn.Linear(8, 10), nn.SiLU(), nn.Linear(10, 8))
        self.out = nn.Linear(8, 4)
        self.again = self.out

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6) to (N, 4)."""
        x = torch.tanh(self.first(x))
        x = x + self.block(x)
        y = x + self.block(x)
        return self.out(x) * self.again(y)  # type: ignore[no-any-return]


class Copies(nn.Module):
    """An MLP of which a part is redundant, and stays so in training: units that are copies, one that is silent."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.hidden.weight[6:] = self.hidden.weight[1:3]
            self.hidden.bias[6:] = self.hidden.bias[1:3]
            self.out.weight[:, 6:] = self.out.weight[:, 1:3]
            self.hidden.weight[4] = self.hidden.bias[4] = 0
            self.out.weight[:, 4] = 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) to (N, 3)."""
        return self.out(F.gelu(self.hidden(x)))  # type: ignore[no-any-return]
