"""Operations that tell positions apart by index, take windows, pair numbers or compute a loss let the width through."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve

EDGES = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])


def scattered(h):
    return torch.zeros_like(h).scatter_add(1, EDGES[1][None, :, None].expand(h.shape), h[:, EDGES[0]])


def reduced(h):
    index = EDGES[1][None, :, None].expand(h.shape)
    return h.scatter_reduce(1, index, h, "amax")


def added(h):
    return torch.zeros_like(h).index_add_(1, EDGES[0], h[:, EDGES[1]])


def gathered(h):
    return h.gather(1, EDGES[1][None, :, None].expand(h.shape))


def copied(h):
    return torch.zeros_like(h).index_copy(1, EDGES[1], h)


def windowed(h):
    return F.pad(h, (0, 0, 1, 1)).unfold(1, 3, 1).mean(-1)


def columns(h):
    square = h.mT.unflatten(-1, (1, 5))
    return F.fold(F.unfold(square, (1, 3), padding=(0, 1)), (1, 5), (1, 3), padding=(0, 1)).flatten(2).mT


def turned(h):
    angles = torch.polar(torch.ones(5, 1, 1), torch.arange(5.0)[:, None, None])
    pairs = torch.view_as_complex(torch.stack([h, h.roll(1, 1)], -1)) * angles.squeeze(-1)
    return torch.view_as_real(pairs).sum(-1)


def drawn_to_zero(h):
    return h * F.mse_loss(h, torch.zeros_like(h), reduction="none")


@pytest.mark.parametrize(
    "operation", [scattered, reduced, added, gathered, copied, windowed, columns, turned, drawn_to_zero]
)
def test_the_width_goes_through(operation):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(operation(self.first(x)))

    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 5, 3)
    expected, other = model(x), torch.randn(3, 5, 3)
    wanted = model(other)
    assert [(group.name, group.size, group.mixed) for group in evolve.analyse(model, x).changeable] == [
        ("first", 8, "")
    ]
    result = evolve.mutate(model, "widen", site="first", factor=1.5, example_inputs=x)
    assert result.success, result.message
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(other), wanted)
    assert evolve.mutate(model, "narrow", site="first", factor=0.5, example_inputs=x).success
    assert model.last.in_features == 6


@pytest.mark.parametrize(("reduction", "kind"), [("mean", "statistic"), ("sum", "mixed")])
def test_a_loss_over_everything_tells_of_all_positions(reduction, kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.first(x)
            return self.last(h), F.smooth_l1_loss(h, torch.zeros_like(h), reduction=reduction)

    group = evolve.analyse(Model(), torch.randn(2, 3)).group("first")
    assert (bool(group.statistic), bool(group.mixed)) == (kind == "statistic", kind == "mixed")


def test_bags_of_embeddings():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.last = nn.EmbeddingBag(10, 8, mode="mean"), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.bag(x))

    model, x = Bags(), torch.randint(10, (4, 3))
    expected = model(x)
    result = evolve.mutate(model, "widen", site="bag", example_inputs=x)
    assert result.success, result.message
    assert (model.bag.weight.shape, model.bag.embedding_dim) == ((10, 16), 16)
    torch.testing.assert_close(model(x), expected)


def test_learned_positions_under_a_layer_norm():
    class Latents(nn.Module):
        def __init__(self):
            super().__init__()
            self.latents, self.norm, self.last = nn.Parameter(torch.randn(6, 8)), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            latents = self.norm(self.latents).expand(x.shape[0], -1, -1)
            return self.last(x + (x @ latents.mT).softmax(-1) @ latents)

    model, x = Latents(), torch.randn(2, 5, 8)
    group = next(group for group in evolve.analyse(model, x).changeable if group.size == 6)
    result = evolve.mutate(model, "narrow", site=group.name, factor=0.5, example_inputs=x)
    assert result.success, result.message
    assert model.latents.shape == (3, 8)


def test_complex_weights_are_shared_as_real_ones():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(6, 2)
            self.weight = nn.Parameter(torch.randn(8, 6, dtype=torch.complex64))

        def forward(self, x):
            return self.last((self.first(x).to(torch.complex64) @ self.weight).real)

    model, x = Spectral(), torch.randn(3, 4)
    expected = model(x)
    result = evolve.mutate(model, "widen", site="first", init="split", example_inputs=x)
    assert result.success, result.message
    assert model.weight.shape == (16, 6)
    torch.testing.assert_close(model(x), expected)
