"""`shrink_perturb`: what is fresh, what is kept, and what follows."""

import copy

import pytest
import torch
from helpers.fingerprints import fingerprint
from torch import nn
from torch.nn.utils import parametrizations

import evolve
from evolve.care.ema import EMA
from evolve.errors import EvolveError
from evolve.operators.reinit import fresh_values


class Net(nn.Module):
    """Layers that draw their weights, and parameters that nothing draws."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.token = nn.Parameter(2 + 0.1 * torch.randn(1, 64, 16))
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 6.0]))
        self.gate = nn.Parameter(torch.tensor(0.25))
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        x = self.body(x * self.scale.view(-1, 1, 1)).flatten(2)
        return self.head(torch.cat([x, self.token.expand(len(x), -1, -1)], 2).mean(2)) * self.gate


X, Y = torch.randn(16, 3, 8, 8), torch.arange(16) % 4


def trained(steps=3, lr=1e-2):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return model, optimizer


def loss(outputs):
    return nn.functional.cross_entropy(outputs, Y)


def test_fresh_values_are_those_of_a_new_layer_and_leave_no_trace():
    model, optimizer = trained()
    before = fingerprint(model, optimizer)
    fresh = fresh_values(model, list(model.modules()))
    assert fingerprint(model, optimizer) == before
    assert fresh.keys() == dict(model.named_parameters()).keys()
    bound = 1 / 27**0.5  # of nn.Conv2d: uniform in ±1/sqrt(fan in)
    assert fresh["body.0.weight"].abs().max() < bound
    assert fresh["body.0.weight"].std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(fresh["body.1.weight"], torch.ones(64))
    assert torch.equal(fresh["body.1.bias"], torch.zeros(64))
    assert fresh["token"].mean() == pytest.approx(model.token.mean().item(), abs=0.02)
    assert fresh["token"].std() == pytest.approx(model.token.std().item(), rel=0.1)
    assert torch.equal(fresh["scale"], model.scale.detach().mean().expand(3))
    assert torch.equal(fresh["gate"], model.gate)


def test_outer_layers_draw_last_and_computed_weights_are_drawn_alike():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.bare = nn.Parameter(torch.zeros(2))
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.constant_(self.inner.weight, 7.0)
            self.bare = nn.Parameter(torch.full((2,), 5.0))  # another object, for a while

    model = nn.Sequential(Own(), parametrizations.weight_norm(nn.Linear(4, 3)))
    bare = model[0].bare
    nn.init.normal_(model[0].inner.weight)
    fresh = fresh_values(model, list(model.modules()))
    assert model[0].bare is bare
    assert torch.equal(fresh["0.inner.weight"], torch.full((4, 4), 7.0))
    assert torch.equal(fresh["0.bare"], torch.full((2,), 5.0))
    assert 0 < fresh["0.inner.bias"].abs().max() < 0.5
    magnitudes = model[1].parametrizations.weight.original0
    assert fresh["1.parametrizations.weight.original0"].mean() == pytest.approx(magnitudes.mean().item(), abs=0.3)
    assert fresh["1.parametrizations.weight.original1"].isfinite().all()


def test_the_share_that_is_kept():
    model, optimizer = trained()
    before = copy.deepcopy(model)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    result = evolve.mutate(
        model, "shrink_perturb", keep=0.6, layers={"body": 1.0, "body.1": 0.0}, optimizer=optimizer, example_inputs=X
    )
    assert result, result.message
    assert (result.record.site, result.record.preserves, result.record.plan) == ("*", "no", {"keep": 0.6})
    assert torch.equal(model.body[0].weight, before.body[0].weight)
    assert torch.equal(model.body[1].weight, torch.ones(64))
    assert torch.allclose(model.scale, 0.6 * before.scale + 0.4 * before.scale.mean())
    noise = (model.head.weight - 0.6 * before.head.weight).detach() / 0.4
    assert noise.abs().max() <= 1 / 8 + 1e-6  # of nn.Linear: uniform in ±1/sqrt(64)
    assert noise.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.15)
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    again = copy.deepcopy(before)
    evolve.replay(again, [result.record])
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in model.named_parameters())  # from the same seed


def test_moments_are_carried_or_begin_anew():
    for moments in ("carry", "reset"):
        model, optimizer = trained()
        average = optimizer.state[model.head.weight]["exp_avg"].clone()
        result = evolve.mutate(
            model, "shrink_perturb", site="head", moments=moments, optimizer=optimizer, example_inputs=X, strict=True
        )
        assert list(result.redrawn) == ["head.weight", "head.bias"]
        assert (model.head.weight in optimizer.state) == (moments == "carry")
        assert moments == "reset" or torch.equal(optimizer.state[model.head.weight]["exp_avg"], average)
        assert model.body[0].weight in optimizer.state
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        assert int(optimizer.state[model.head.weight]["step"]) == (4 if moments == "carry" else 1)


def test_an_average_of_the_weights_begins_anew_where_they_changed():
    model, _ = trained()
    ema = EMA(model, 0.9)
    ema.shadow["head.weight"].zero_()
    ema.shadow["token"].zero_()
    result = evolve.mutate(model, "shrink_perturb", site="head", example_inputs=X, strict=True)
    ema.follow(model, result.cuts, result.redrawn)
    assert torch.equal(ema.shadow["head.weight"], model.head.weight)
    assert not ema.shadow["token"].any()


def test_auto_keeps_as_much_as_gives_up_the_answers():
    model, optimizer = trained(60)
    model.gate.requires_grad_(False)  # a frozen parameter is no part of it
    before = copy.deepcopy(model)
    result = evolve.mutate(
        model, "shrink_perturb", keep="auto", optimizer=optimizer, example_inputs=X, loss=loss, seed=1, strict=True
    )
    keep = result.record.plan["keep"]
    assert 0 < keep < 1
    assert torch.equal(model.gate, before.gate)

    def loss_at(share):
        other = copy.deepcopy(before)
        evolve.mutate(other, "shrink_perturb", keep=share, example_inputs=X, seed=1, strict=True)
        with torch.no_grad():
            return loss(other.train()(X)).item()

    present, new = loss_at(1.0), loss_at(0.0)
    assert present < 0.5 < new - 0.7
    assert loss_at(keep) >= present + 0.9 * (new - present) > loss_at(round(keep + 0.05, 2))


def test_what_it_declines():
    model, optimizer = trained()
    before = fingerprint(model, optimizer)

    def answer(**options):
        result = evolve.mutate(model, "shrink_perturb", optimizer=optimizer, example_inputs=X, **options)
        assert result.status == "not_applicable"
        return result.message

    assert "pass loss=" in answer(keep="auto")
    assert "no submodule 'hed'. Did you mean 'head'?" in answer(layers={"hed": 0.5})
    assert "no trainable parameters" in answer(site="body.2")
    assert "part of a submodule" in answer(site="head:1")
    assert fingerprint(model, optimizer) == before
    with pytest.raises(EvolveError, match="keep"):
        evolve.mutate(model, "shrink_perturb", keep=1.5)


def test_fresh_values_have_a_share_of_their_own():
    model, _ = trained()
    before, other = copy.deepcopy(model), copy.deepcopy(model)
    assert evolve.mutate(model, "shrink_perturb", keep=0.4, fresh=0.0, example_inputs=X, seed=1)
    assert torch.allclose(model.head.weight, 0.4 * before.head.weight)
    assert evolve.mutate(other, "shrink_perturb", keep=0.0, fresh=1.0, example_inputs=X, seed=1)
    mixed = copy.deepcopy(before)
    assert evolve.mutate(mixed, "shrink_perturb", keep=0.4, fresh=0.1, example_inputs=X, seed=1)
    assert torch.allclose(mixed.head.weight, 0.4 * before.head.weight + 0.1 * other.head.weight)
