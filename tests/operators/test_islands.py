"""Blocks compute in the precision that flows where they stand."""

import pytest
import torch
from torch import nn

import evolve

HALF = torch.bfloat16


class InSingle(nn.LayerNorm):
    """A norm with float32 weights; gives what it got, or float32."""

    gives_single = False

    def forward(self, x):
        y = super().forward(x.float())
        return y if self.gives_single else y.to(x.dtype)


class GivesSingle(InSingle):
    gives_single = True


class Half(nn.Module):
    """A bfloat16 model with a norm in float32."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8, dtype=HALF), nn.Linear(8, 4, dtype=HALF)
        self.norm, self.act = norm(8), nn.GELU()

    def forward(self, x):
        return self.last(self.act(self.norm(self.first(x.to(HALF)))).to(HALF))


class Single(nn.Module):
    """A float32 model with a layer in bfloat16."""

    def __init__(self):
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(8, 8), nn.Linear(8, 8, dtype=HALF), nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x)
        return self.last(y + self.mid(y.to(HALF)).float())


class Autocast(nn.Module):
    """Computes in bfloat16 by autocast; what it learns is float32."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.act, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=HALF):
            return self.last(self.act(self.norm(self.first(x)))).float()


class Images(nn.Module):
    """Convolutions in bfloat16 around a GroupNorm in float32."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1, dtype=HALF), nn.Conv2d(8, 4, 3, dtype=HALF)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        return self.last(self.norm(self.first(x.to(HALF)).float()).to(HALF))


# A model, a site, and the type of what is inserted behind and beside it.
PLACES = {
    "norm in float32": (lambda: Half(InSingle), "norm", HALF, HALF),
    "norm that gives float32": (lambda: Half(GivesSingle), "norm", torch.float32, HALF),
    "activation behind it": (lambda: Half(GivesSingle), "act", torch.float32, torch.float32),
    "activation without neighbours": (lambda: Half(InSingle), "act", HALF, HALF),
    "layer in bfloat16": (Single, "mid", HALF, HALF),
    "layer before it": (Single, "first", torch.float32, torch.float32),
    "autocast": (Autocast, "first", torch.float32, torch.float32),
    "norm under autocast": (Autocast, "norm", torch.float32, torch.float32),
    "activation under autocast": (Autocast, "act", torch.float32, torch.float32),
    "GroupNorm in float32": (Images, "norm", torch.float32, torch.float32),
    "convolution before it": (Images, "first", HALF, HALF),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("operator", ["deepen", "attention", "branch", "residual"])
def test_blocks_take_the_precision_that_flows(place, operator):
    build, site, behind, beside = PLACES[place]
    torch.manual_seed(0)
    model = build()
    x = torch.randn(2, 3, 6, 6) if isinstance(model, Images) else torch.randn(2, 6, 8)
    before = model(x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    result = evolve.mutate(model, operator, site=site, example_inputs=x, optimizer=optimizer, seed=0)
    assert result.success, result.message
    assert torch.equal(model(x), before)
    expected = behind if operator in ("deepen", "attention") else beside
    assert {parameter.dtype for parameter in model.evolved.parameters()} == {expected}
    model.train()(x).float().square().mean().backward()
    optimizer.step()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    rebuilt = build()
    evolve.replay(rebuilt, [result.record])
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(x), model(x))
    assert {key: value.dtype for key, value in rebuilt.state_dict().items()} == {
        key: value.dtype for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("norm", [InSingle, GivesSingle])
def test_a_swap_takes_what_comes_in(norm):
    torch.manual_seed(0)
    model, x = Half(norm), torch.randn(2, 6, 8)
    before = model(x)
    assert evolve.mutate(model, "swap", site="act", example_inputs=x, strict=True)
    assert torch.equal(model(x), before)


def test_plans_say_a_precision_only_where_it_is_another_one():
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    record = evolve.mutate(plain, "deepen", site="1", example_inputs=torch.randn(2, 8)).record
    assert "dtype" not in record.plan
    record = evolve.mutate(Half(InSingle), "deepen", site="norm", example_inputs=torch.randn(2, 8)).record
    assert record.plan["dtype"] == "bfloat16"
