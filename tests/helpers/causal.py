"""Small causal models, and how far one of them looks ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm block of a GPT."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            part.view(n, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.project(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Tokens (N, L) to logits (N, L, 20); `causal=False` makes it an encoder as in BERT."""

    def __init__(self, causal: bool = True, layers: int = 1) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(20, 16), nn.Parameter(0.1 * torch.randn(10, 16))
        self.blocks = nn.ModuleList(Block(16, 2, causal) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Flat(GPT):
    """The same, with the logits of all tokens in one axis, as a loss wants them."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).flatten(0, 1)


class SequenceFirst(nn.Module):
    """PyTorch's encoder with a causal mask on (L, N, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(len(x), dtype=x.dtype)
        return self.head(self.block(self.read(x), src_mask=mask, is_causal=True))


class Chomped(nn.Module):
    """A convolution that pads on both sides and drops what lies ahead, as in a TCN (Bai et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.behind = 2 * dilation
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=self.behind, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., : -self.behind]


class TCN(nn.Module):
    """(N, 3, L) to (N, 4, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = Chomped(3, 8, 1), nn.ReLU(), Chomped(8, 8, 2)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        return self.head(self.act(self.second(x)) + x)


class PaddedBefore(nn.Module):
    """Plain convolutions behind padding on one side; the second one strides."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.one, self.two = nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.pad(x)))
        x = x + F.relu(self.two(self.pad(x)))
        return self.head(x.transpose(1, 2))


class WaveNet(nn.Module):
    """(N, 4, L) to (N, 4, L - 7): gated dilated convolutions without padding (van den Oord et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv1d(4, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3))
        self.mixes, self.skips = (nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3)) for _ in range(2))
        self.hidden, self.head = nn.Conv1d(8, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, length, total = self.read(x), x.shape[-1] - 7, 0
        for layer, gate, mix, skip in zip(self.filters, self.gates, self.mixes, self.skips, strict=True):
            y = torch.tanh(layer(x)) * torch.sigmoid(gate(x))
            x = x[..., -y.shape[-1] :] + mix(y)
            total = total + skip(y)[..., -length:]
        return self.head(F.relu(self.hidden(F.relu(total))))


class Masked(nn.Conv2d):
    """A convolution that sees the pixels before its own, row by row, and its own if told so."""

    def __init__(self, inputs: int, outputs: int, size: int, own: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.zeros(size, size)
        mask[: size // 2] = 1
        mask[size // 2, : size // 2 + own] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class PixelCNN(nn.Module):
    """(N, 1, H, W) to logits (N, 4, H, W) of each pixel given those before it (van den Oord et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = Masked(1, 8, 5, own=False), nn.ReLU(), Masked(8, 8, 3, own=True)
        self.norm, self.hidden, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = x + self.act(self.second(x))
        return self.head(self.act(self.hidden(x)))


class Recurrent(nn.Module):
    """A language model with an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


class MADE(nn.Module):
    """(N, 6) to (N, 6), each output from the inputs before it, by masked linear layers (Germain et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 20), nn.Linear(20, 6)
        degrees = torch.arange(20) % 5
        self.register_buffer("mask1", (degrees[:, None] >= torch.arange(6)).float())
        self.register_buffer("mask2", (torch.arange(6)[:, None] > degrees).float())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(F.linear(x, self.hidden.weight * self.mask1, self.hidden.bias))
        return F.linear(y, self.out.weight * self.mask2, self.out.bias)


class Spectrogram(nn.Module):
    """(N, 2, F, T) to (N, 3, F, T): causal in time, not in frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.one, self.two = nn.ZeroPad2d((2, 0, 1, 1)), nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3)
        self.act, self.head = nn.ReLU(), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(self.pad(x)))
        return self.head(self.act(self.two(self.pad(x))) + x)


@dataclass(frozen=True)
class Causal:
    """A causal model and how to read it.

    Attributes:
        build: Makes the model.
        inputs: Makes a batch.
        axes: Axes of the positions in the input, those of the output, row by row where there are two.
        behind: How many positions an output stands behind its input: 1 where it must not see its own.
        lead: Sizes of the output's first axis.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    axes: tuple[tuple[int, ...], tuple[int, ...]]
    behind: int = 0
    lead: tuple[int, ...] = ()

    def ahead(self, model: nn.Module, x: Tensor) -> float:
        """Returns the largest change of an output when later positions of the input change; 0 for a causal model."""
        count = 1
        for axis in self.axes[0]:
            count *= x.shape[axis]
        most = 0.0
        training = model.training
        model.eval()
        with torch.no_grad():
            base = self._flat(model(x))
            skipped = count - len(base)
            for cut in range(1, count):
                late = torch.zeros(count, dtype=torch.bool)
                late[cut:] = True
                shape = [x.shape[axis] if axis in self.axes[0] else 1 for axis in range(x.dim())]
                other = (x + 7) % 20 if x.dtype == torch.long else torch.randn_like(x)
                changed = self._flat(model(torch.where(late.view(shape), other, x)))
                early = max(0, cut + self.behind - skipped)
                delta = (base[:early] - changed[:early]).abs()
                most = max(most, float(delta.max()) if early else 0.0)
        model.train(training)
        return most

    def _flat(self, out: object) -> Tensor:
        """The logits by position: (positions, everything else)."""
        found: Tensor = out if isinstance(out, Tensor) else out.logits  # type: ignore[attr-defined]
        found = found.unflatten(0, self.lead) if self.lead else found
        return found.movedim(self.axes[1], tuple(range(len(self.axes[1])))).flatten(0, len(self.axes[1]) - 1)


def _tokens() -> Tensor:
    return torch.randint(0, 20, (4, 10))


def llama() -> nn.Module:
    """Llama of Hugging Face in its smallest form; its cache is off, as in training."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, use_cache=False, pad_token_id=None))


CAUSAL: dict[str, Causal] = {
    "gpt": Causal(GPT, _tokens, ((1,), (1,))),
    "flat_gpt": Causal(Flat, _tokens, ((1,), (1,)), lead=(4, 10)),
    "llama": Causal(llama, _tokens, ((1,), (1,))),
    "tcn": Causal(TCN, lambda: torch.randn(4, 3, 12), ((2,), (2,))),
    "padded": Causal(PaddedBefore, lambda: torch.randn(4, 3, 12), ((2,), (1,))),
    "wavenet": Causal(WaveNet, lambda: torch.randn(4, 4, 20), ((2,), (2,))),
    "pixelcnn": Causal(PixelCNN, lambda: torch.randn(4, 1, 6, 6), ((2, 3), (2, 3)), behind=1),
    "recurrent": Causal(Recurrent, _tokens, ((1,), (1,))),
    "made": Causal(MADE, lambda: torch.randn(8, 6), ((1,), (1,)), behind=1),
    "spectrogram": Causal(Spectrogram, lambda: torch.randn(4, 2, 5, 9), ((3,), (3,))),
    "sequence_first": Causal(SequenceFirst, lambda: torch.randn(8, 4, 6), ((0,), (0,))),
}
