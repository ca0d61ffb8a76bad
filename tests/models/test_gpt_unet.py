"""The built-in language model and segmentation model: shapes, what they see, and how they evolve."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import evolve
from evolve.cli import app
from evolve.errors import EvolveError
from evolve.models import GPT, UNet, build_model


def gpt(**options):
    torch.manual_seed(0)
    return GPT(**{"vocab_size": 20, "width": 16, "depth": 2, "heads": 2, "context": 12, **options})


def tokens():
    return torch.randint(0, 20, (3, 10), generator=torch.Generator().manual_seed(0))


def ahead(model):
    """How much the logits up to a position change with the tokens behind it."""
    model.eval()
    x = tokens()
    with torch.no_grad():
        base = model(x)
        changes = []
        for cut in range(1, x.shape[1]):
            other = x.clone()
            other[:, cut:] = (other[:, cut:] + 7) % 20
            changed = model(other)
            assert not torch.allclose(changed[:, cut], base[:, cut])
            changes.append(float((changed - base)[:, :cut].abs().max()))
    model.train()
    return max(changes)


def test_gpt_has_its_size_and_output():
    assert sum(p.numel() for p in build_model("gpt").parameters()) == 834_304
    tied, free = gpt(), gpt(tied=False)
    assert tied(tokens()).shape == free(tokens()).shape == (3, 10, 20)
    assert tied.head.weight is tied.embed.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 20 * 16
    with pytest.raises(EvolveError, match="context of 12 tokens, not 13"):
        tied(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(EvolveError, match="16 is not a multiple of 3"):
        gpt(heads=3)


def test_gpt_learns_what_comes_next():
    model, x = gpt(width=32), torch.arange(40).remainder(7).unfold(0, 11, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("operator", "site", "options"),
    [
        ("widen", "blocks.0.mlp.0", {}),
        ("widen", "blocks.1.attention.qkv", {}),
        ("deepen", "blocks", {}),
        ("residual", "blocks.0.mlp", {"init": "random"}),
        ("attention", "blocks.0", {}),
        ("narrow", "blocks.0.mlp.0", {}),
        ("narrow", "blocks.1.attention.qkv", {}),
        ("narrow", "*", {}),
    ],
)
def test_a_mutated_gpt_is_causal_and_learns(tied, operator, site, options):
    model, x = gpt(tied=tied), tokens()
    assert ahead(model) == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = sum(p.numel() for p in model.parameters())
    ok, message = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=x, **options)
    assert ok, message
    assert (sum(p.numel() for p in model.parameters()) < before) == (operator == "narrow")
    for _ in range(3):
        F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ahead(model) < 1e-6


def test_inspect_knows_what_gpt_takes():
    options = ["width=16", "depth=1", "heads=2", "context=16"]
    shown = CliRunner().invoke(app, ["inspect", "gpt", *(f"--option={option}" for option in options), "--json"])
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    assert facts["inputs"] == [[2, 8]]
    assert "blocks.0.mlp.0" in next(one for one in facts["operators"] if one["name"] == "widen")["sites"]


@pytest.mark.parametrize(("side", "options"), [(16, {}), (21, {"depth": 2}), (8, {"in_channels": 1, "classes": 5})])
def test_unet_gives_scores_for_each_pixel(side, options):
    model = UNet(width=4, **options)
    images = torch.randn(2, options.get("in_channels", 3), side, side)
    assert model(images).shape == (2, options.get("classes", 2), side, side)
    assert {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)} >= {
        4,
        4 * 2 ** options.get("depth", 3),
    }


@pytest.mark.parametrize("operator", ["widen", "deepen", "residual", "narrow", "kernel"])
def test_a_unet_evolves(operator):
    torch.manual_seed(0)
    model, images = UNet(width=4, depth=2), torch.randn(2, 3, 12, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for site in ("down.0.0", "bottom.3", "up.0.0"):
        ok, message = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=images)
        assert ok, message
    F.cross_entropy(model(images), torch.zeros(2, 12, 12, dtype=torch.long)).backward()
    optimizer.step()
    assert model(images).shape == (2, 2, 12, 12)
    with pytest.raises(EvolveError, match="depth must be 1 or more"):
        UNet(depth=0)
