"""Models of sequences: attention and recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Transformer(nn.Module):
    """Token embedding tied to the output layer, attention, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) to (N, L, 11)."""
        return self.head(self.block(self.embed(tokens)))  # type: ignore[no-any-return]


class GroupedQueries(nn.Module):
    """A decoder block as in Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.groups, self.width = 4, 2, 4
        self.embed = nn.Embedding(11, 16)
        self.norm1, self.norm2, self.norm3 = nn.RMSNorm(16), nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o = nn.Linear(16, 16, bias=False)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) to (N, L, 11)."""
        x = self.embed(tokens)
        n, length = tokens.shape
        y = self.norm1(x)
        q = self._rotated(self.q(y).view(n, length, self.heads, self.width).transpose(1, 2))
        k = self._rotated(self.k(y).view(n, length, self.groups, self.width).transpose(1, 2))
        v = self.v(y).view(n, length, self.groups, self.width).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, length, -1))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm3(x))  # type: ignore[no-any-return]

    def _rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] / 10 ** torch.arange(
            x.shape[-1] // 2, device=x.device
        )
        one, two = x.chunk(2, dim=-1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


class Recurrent(nn.Module):
    """A recurrent layer between others: a site that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.rnn = nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, 4) to (N, 2)."""
        return self.head(self.rnn(self.read(x))[0][:, -1])  # type: ignore[no-any-return]


class FusedAttention(nn.Module):
    """A vision transformer with one layer for queries, keys and values, as in GPT-2 and timm; a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.project(y)
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """`nn.MultiheadAttention` over another sequence of another width; two positional inputs, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.hidden, self.out = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, memory: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """(N, L, 4) and (N, M, 6) to a dict of (N, L, 3) and, in a tuple, (N, L, M)."""
        x = self.read(x)
        y, weights = self.attention(x, memory, memory)
        return {"out": self.out(F.relu(self.hidden(x + y))), "more": (weights,)}


class Causal(nn.Module):
    """Dilated convolutions that see the past alone, as in a TCN: padding on both sides, and what lies ahead dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(3, 6, 2, padding=1)
        self.far = nn.Conv1d(6, 6, 2, padding=2, dilation=2)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, L) to (N, 4, L)."""
        x = F.relu(self.norm(self.near(x)[..., :-1]))
        return self.head(x + torch.tanh(self.far(x)[..., :-2]))  # type: ignore[no-any-return]


class Settings:
    """What `Layered` is built from."""

    def __init__(self, layers: int) -> None:
        self.vocabulary, self.width, self.num_layers = 11, 8, layers
        self.layer_kinds = ["near", "far"] * (layers // 2)


class Layer(nn.Module):
    """Causal attention and an MLP, each beside a shortcut; it knows its number and has a config."""

    def __init__(self, config: Settings, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.norm1, self.norm2 = nn.RMSNorm(config.width), nn.LayerNorm(config.width)
        self.qkv, self.project = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(nn.Linear(config.width, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, config.width))

    def forward(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        """(N, L, D) to the same; keeps what it attended to."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        kept[self.layer_idx : self.layer_idx + 1] = [k]
        x = x + self.project(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Layered(nn.Module):
    """A decoder that is built from a config, which says how many layers of which kind there are, and how many run."""

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """(N, L) to logits (N, L, 11), and the keys of each layer."""
        x, kept = self.embed(tokens), list[Tensor]()
        for layer, _ in zip(self.layers[: self.config.num_layers], self.config.layer_kinds, strict=True):
            x = layer(x, kept)
        return {"logits": self.head(x), "kept": kept}
