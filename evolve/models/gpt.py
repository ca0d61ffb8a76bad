"""A small language model over bytes or characters, after Radford et al. 2019 (GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.errors import EvolveError
from evolve.models.lookup import models


class CausalAttention(nn.Module):
    """Self-attention in which each position sees itself and those before it.

    Args:
        width: Features of a token.
        heads: Attention heads; they share the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) to (N, L, width)."""
        n, length, _ = x.shape
        q, k, v = (part.view(n, length, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(n, length, -1))
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and beside a shortcut (pre-norm).

    Args:
        width: Features of a token.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) to (N, L, width)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


@models.register("gpt")
class GPT(nn.Module):
    """A decoder-only transformer with learned positions: 834,304 parameters at the defaults.

    Args:
        vocab_size: Tokens there are; 256 for bytes.
        width: Features of a token, a multiple of `heads`.
        depth: Blocks.
        heads: Attention heads of each block.
        context: Most tokens of a sequence.
        tied: Whether the output layer has the weights of the token embedding.

    Raises:
        EvolveError: If the heads do not share the width evenly.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        context: int = 64,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise EvolveError(f"The heads of a GPT share its width evenly: {width} is not a multiple of {heads}.")
        self.context = context
        self.embed = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.reset_parameters()
        if tied:
            self.head.weight = self.embed.weight

    def reset_parameters(self) -> None:
        """Draws weights as GPT-2 does: those that end a residual branch are smaller the deeper the model is."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                ends = name.endswith(("attention.project", "mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5 if ends else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits of each next token: (N, L) int64 to (N, L, vocab_size).

        Raises:
            EvolveError: If there are more tokens than `context`.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise EvolveError(
                f"This GPT has a context of {self.context} tokens, not {length}. Cut the sequences, or give "
                "the model the option context."
            )
        x = self.embed(tokens) + self.positions(torch.arange(length, device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
