"""Integers that modules keep follow the sizes they mean, and no others; what the probe did not show is said."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evolve
from evolve.blocks.layers import LinearBlock
from evolve.structure.tracing.recorder import plain_operations


class Clipped(nn.Module):
    """Keeps two integers of the same size, of which only one is a width."""

    def __init__(self):
        super().__init__()
        self.max_length, self.width = 8, 8
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = x[:, : self.max_length]
        return self.b(F.relu(self.a(x)).unflatten(-1, (self.width, 1)).flatten(-2))


class Heads(nn.Module):
    """Attention written out, with widths kept as integers and derived ones computed in the forward."""

    def __init__(self):
        super().__init__()
        self.heads, self.head_dim, self.sizes = 4, 4, (16, 24)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(n, length, self.heads * self.head_dim))
        return x + self.down(F.gelu(self.up(x)).unflatten(-1, (self.sizes[1], 1)).squeeze(-1))


def test_an_integer_that_is_equal_by_chance_stays():
    model, long = Clipped(), torch.randn(2, 12, 4)
    before = model(long)
    assert evolve.mutate(model, "widen", site="a", example_inputs=torch.randn(2, 5, 4))
    assert (model.width, model.max_length) == (16, 8)
    assert torch.allclose(model(long), before, atol=1e-5)


def test_heads_and_tuples_follow():
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 5, 16)
    before, longer = model(x), torch.randn(3, 9, 16)
    expected = model(longer)
    sites = evolve.sites(model, "widen", example_inputs=x)
    assert sites == ["qkv", "up"]
    for site in sites:
        result = evolve.mutate(model, "widen", site=site, example_inputs=x, factor=1.5)
        assert result.success, result.message
    assert (model.heads, model.head_dim, model.sizes) == (6, 4, (16, 36))
    assert (model.qkv.out_features, model.out.in_features, model.up.out_features) == (72, 24, 36)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert torch.allclose(model(longer), expected, atol=1e-5)


def test_layers_that_the_probe_did_not_show_are_named():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.long, self.h = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            y = self.e(x)
            return self.h(y + self.long(y) if x.shape[1] > 6 else y)

    short, long = torch.randint(10, (2, 4)), torch.randint(10, (2, 8))
    result = evolve.mutate(Long(), "widen", site="e", example_inputs=short)
    assert result.success
    assert "never runs 'long.weight', 'long.bias'" in result.message
    result = evolve.mutate(Long(), "widen", site="e", example_inputs=long)
    assert result.success
    assert "never runs" not in result.message


@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_a_layer_like_the_others_that_the_probe_did_not_show_holds_them_back(operator):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.experts = nn.Linear(4, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
            self.out, self.free, self.last = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            expert = self.experts[int(x.sum() > 0)]
            return self.last(self.free(self.out(torch.relu(expert(self.embed(x))))))

    model, x = Experts(), torch.ones(2, 4)
    result = evolve.mutate(model, operator, site="embed", example_inputs=x)
    assert result.status == "not_applicable"
    assert "never runs 'experts.0', which is like a layer of 'embed'" in result.message
    result = evolve.mutate(model, operator, site="*", example_inputs=x)
    assert result.success, result.message
    assert model.free.out_features == {"widen": 12, "narrow": 3}[operator]
    assert model(-x).shape == (2, 2)  # the other way still goes


@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_heads_whose_width_is_worked_out_in_the_forward_are_left_out_of_all(operator):
    class Heads(nn.Module):  # as minGPT writes them
        def __init__(self):
            super().__init__()
            self.n_head, self.embed = 2, nn.Linear(3, 8)
            self.q, self.k, self.v, self.proj, self.head = (nn.Linear(8, n) for n in (8, 8, 8, 8, 2))

        def forward(self, x):
            x = self.embed(x)
            batch, length, width = x.size()
            q, k, v = (
                layer(x).view(batch, length, self.n_head, width // self.n_head).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
            return self.head(x + self.proj(y))

    model, x = Heads(), torch.randn(2, 5, 3)
    expected = model(x)
    result = evolve.mutate(model, operator, site="*", example_inputs=x)
    assert result.success, result.message
    assert model(x).shape == expected.shape
    if operator == "widen":
        assert model.n_head == 4
        torch.testing.assert_close(model(x), expected)


def test_an_analysis_is_kept_for_the_same_arguments_only():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c, self.h = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x, both):
            y = self.a(x)
            assert type(y.shape[1]) is int  # a forward may insist on plain integers
            return self.h(y + self.c(x) if both else y)

    model, x = Optional(), torch.randn(2, 4)
    alone = evolve.analyse(model, (x, False))
    assert evolve.analyse(model, (x.clone(), False)) is alone
    assert evolve.analyse(model, (x, True)) is not alone
    assert evolve.mutate(model, "widen", site="a", example_inputs=(x, True))
    assert (model.a.out_features, model.c.out_features) == (16, 16)
    assert type(model.a.out_features) is int


def test_state_of_single_elements_grows_with_them():
    model, x = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3)), torch.randn(5, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    old = optimizer.state[model[0].bias]["exp_avg"].clone()
    result = evolve.mutate(model, "widen", site="0", optimizer=optimizer, example_inputs=x, factor=3.0)
    assert result.success, result.message
    shares = torch.tensor(result.record.plan["groups"][0]["steps"][0]["shares"])
    assert torch.allclose(optimizer.state[model[0].bias]["exp_avg"], old * shares)
    model(x).square().sum().backward()
    optimizer.step()


def test_all_groups_but_those_that_cannot_follow():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 9)
            self.one, self.two = nn.Linear(3, 4), nn.Linear(6, 4)

        def forward(self, x):
            few, many = torch.split(self.b(F.relu(self.a(x))), [3, 6], dim=-1)
            return self.one(few) + self.two(many)

    model, x = Split(), torch.randn(4, 5)
    before = model(x)
    result = evolve.mutate(model, "widen", site="*", example_inputs=x)
    assert result.success
    assert "without 'b', 'b:1', which cannot follow" in result.message
    assert (model.a.out_features, model.b.out_features) == (12, 9)
    assert torch.allclose(model(x), before, atol=1e-5)
    refused = evolve.mutate(model, "widen", site="b", example_inputs=x)
    assert refused.status == "not_applicable"
    assert "keeps a size that cannot follow" in refused.message


def test_pixel_shuffle_keeps_its_factor():
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1)), torch.randn(2, 3, 6, 6)
    before = model(x)
    assert evolve.sites(model, "widen", example_inputs=x) == ["0"]
    assert evolve.mutate(model, "widen", site="*", example_inputs=x)
    assert (model[0].out_channels, model[2].in_channels) == (32, 8)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_axes_that_are_turned_in_place():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.GRU(6, 5, batch_first=True))
    x = torch.randn(2, 7, 4)
    before = model(x)[0]
    assert evolve.sites(model, "widen", example_inputs=x) == ["0"]
    assert evolve.mutate(model, "widen", site="0", example_inputs=x)
    assert torch.allclose(model(x)[0], before, atol=1e-6)
    refused = evolve.mutate(model, "widen", site="2", example_inputs=x)
    assert "a recurrent layer" in refused.message


def test_caches_of_a_forward_hold_real_tensors():
    masks = {}

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            if x.shape[1] not in masks:
                masks[x.shape[1]] = torch.ones(x.shape[1], x.shape[1]).tril()
            return self.b(masks[x.shape[1]] @ self.a(x))

    model, x = Masked(), torch.randn(2, 5, 4)
    evolve.analyse(model, x)
    assert type(masks[5]) is torch.Tensor
    assert type(model(x)) is torch.Tensor


def test_a_mutation_in_inference_mode_leaves_a_model_that_trains():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    with torch.inference_mode():
        x = torch.randn(3, 4)
        for operator in ("widen", "deepen"):
            result = evolve.mutate(model, operator, site="0", optimizer=optimizer, example_inputs=x)
            assert result.success, result.message
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


@dataclass(eq=False)
class Part:
    width: int = 8


@dataclass(eq=False)
class Config:
    """Sizes for all layers; 16 is a number of positions too."""

    heads: int = 4
    sizes: list = field(default_factory=lambda: [16, 24])
    positions: int = 16
    part: Part = field(default_factory=Part)
    more: dict = field(default_factory=lambda: {"inner": 20})


class Attends(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


class Configured(nn.Module):
    """Its forward, and those of its layers, read sizes from one config."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.part = config, config.part
        self.embed = nn.Linear(5, 16)
        self.layers = nn.ModuleList(Attends(config) for _ in range(2))
        self.up, self.down, self.inner, self.head = (
            nn.Linear(16, 24),
            nn.Linear(24, 8),
            nn.Linear(8, 20),
            nn.Linear(20, 3),
        )

    def forward(self, x):
        x = self.embed(x[:, : self.config.positions])
        for layer in self.layers:
            x = layer(x)
        x = self.up(x.reshape(len(x), -1, self.config.sizes[0])).relu().unflatten(-1, (self.config.sizes[-1], 1))
        x = self.down(x.squeeze(-1)).unflatten(-1, (self.part.width, 1)).squeeze(-1)
        return self.head(self.inner(x).relu().unflatten(-1, (self.config.more["inner"], 1)).flatten(-2))


@pytest.mark.parametrize(
    ("site", "read", "size"),
    [
        ("layers.0.qkv", lambda config: config.heads, 4),
        ("embed", lambda config: config.sizes[0], 16),
        ("up", lambda config: config.sizes[1], 24),
        ("down", lambda config: config.part.width, 8),
        ("inner", lambda config: config.more["inner"], 20),
    ],
)
def test_integers_in_configs_follow(site, read, size):
    config, x = Config(), torch.randn(2, 6, 5)
    model, other = Configured(config), Configured(config)
    before = model(x)
    result = evolve.mutate(model, "widen", site=site, example_inputs=x, seed=0)
    assert result.success, result.message
    assert torch.allclose(model(x), before, atol=1e-5)
    assert read(model.config) == read(model.layers[1].config) == 2 * size
    assert model.layers[0].config is model.config
    assert model.part is model.config.part
    assert type(read(model.config)) is int
    assert model.config.positions == 16
    assert read(config) == size  # another model may go by it
    assert other.config is config
    assert torch.equal(other(x), before)
    rebuilt = Configured(config)
    evolve.replay(rebuilt, [result.record])
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_configs_come_back():
    config, x = Config(), torch.randn(2, 6, 5)
    model = Configured(config)
    evolve.analyse(model, x)
    refused = evolve.mutate(model, "widen", site="up", example_inputs=x, limits=evolve.Limits(params=10))
    assert refused.status == "rejected"
    with evolve.transaction(model) as change:
        assert evolve.mutate(model, "widen", site="up", example_inputs=x)
        change.rollback()
    assert all(module.config is config for module in (model, *model.layers))
    assert config.sizes == [16, 24]
    assert all(type(size) is int for size in (*config.sizes, config.heads, config.part.width))


def test_blocks_say_nothing_of_sizes_that_are_only_tried(caplog):
    block, x = LinearBlock(4, 4), torch.zeros(2, 3)
    with plain_operations(block):
        block(x)
    assert not caplog.records
    block.said = False
    block(x)
    assert "adds nothing to an output of shape (2, 3)" in caplog.text


class Choosy(nn.Module):
    """Has a layer that is run at one width alone, and adds nothing yet."""

    def __init__(self):
        super().__init__()
        self.a, self.more, self.b = nn.Linear(4, 2), nn.LayerNorm(2), nn.Linear(2, 3)
        nn.init.zeros_(self.more.weight)
        nn.init.zeros_(self.more.bias)

    def forward(self, x):
        y = F.relu(self.a(x))
        return self.b(y + self.more(y) if y.shape[1] == 2 else y)


def test_no_layer_falls_silent():
    model = Choosy()
    ok, message = evolve.mutate(model, "widen", site="a", example_inputs=torch.randn(8, 4))
    assert not ok
    assert "it would no longer run 'more'" in message
    assert model.a.out_features == 2
