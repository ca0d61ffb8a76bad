"""What one integer ties is one group, and `sites` lists nothing that is then refused."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evolve
from evolve.structure import sized_run
from evolve.structure.settings import holder_of

X = torch.randn(3, 5, 12)


class Paths(nn.Module):
    """Two ways through heads that one integer counts; their results are joined as one tensor of that many heads."""

    def __init__(self, heads):
        super().__init__()
        self.counted = heads
        self.one, self.other = nn.Linear(12, 8), nn.Linear(12, 24)
        self.out = nn.Linear(32, 12)

    def heads(self):
        return self.counted

    def forward(self, x):
        n, length, _ = x.shape
        one, other = torch.relu(self.one(x)), torch.tanh(self.other(x))
        one, other = one.view(n, length, -1, 4), other.view(n, length, -1, 12)
        both = torch.cat([one.flatten(2), other.flatten(2)], -1)
        return self.out(both.view(n, length, self.heads() * 16))


class Configured(Paths):
    def heads(self):
        return self.counted.heads


class Nested(Paths):
    def heads(self):
        return self.counted["model"].heads


@dataclass
class Config:
    heads: int


class Derived(Paths):
    """Keeps the product."""

    def __init__(self, heads):
        super().__init__(heads)
        self.whole = heads * 16

    def heads(self):
        return self.whole // 16


MODELS = {
    "attribute": lambda: Paths(2),
    "config": lambda: Configured(Config(2)),
    "namespace": lambda: Configured(SimpleNamespace(heads=2)),
    "config in a dictionary": lambda: Nested({"model": Config(2)}),
    "product": lambda: Derived(2),
    "three ways": lambda: nn.Sequential(Paths(2), nn.Tanh(), Paths(2)),
}


@pytest.mark.parametrize("operator", ["widen", "narrow"])
@pytest.mark.parametrize("name", MODELS)
def test_what_one_integer_counts_changes_together(name, operator):
    torch.manual_seed(0)
    model = MODELS[name]()
    before = model(X)
    places = evolve.sites(model, operator, example_inputs=X)
    assert places
    for place in places:
        child = copy.deepcopy(model)
        result = evolve.mutate(child, operator, site=place, example_inputs=X)
        assert result, f"{place}: {result.message}"
        if operator == "widen":
            assert torch.allclose(child(X), before, atol=1e-5)
        rebuilt = copy.deepcopy(model)
        evolve.replay(rebuilt, [result.record])
        rebuilt.load_state_dict(child.state_dict())
        assert torch.equal(rebuilt(X), child(X))


class Written(nn.Module):
    """Has the numbers of its heads in its code."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(12, 8), nn.Linear(8, 6), nn.Linear(6, 12)

    def forward(self, x):
        y = self.one(x).view(3, 5, 2, 4).flatten(2)
        return self.out(torch.relu(self.two(y)))


def test_sites_list_nothing_that_cannot_follow():
    model = Written()
    places = evolve.sites(model, "widen", example_inputs=X)
    assert places == ["two"]
    assert evolve.mutate(model, "widen", site="two", example_inputs=X)
    refused = evolve.mutate(model, "widen", site="one", example_inputs=X)
    assert not refused
    assert "the model (Written)" in refused.message
    assert "line" in refused.message
    assert ".view(3, 5, 2, 4)" in refused.message


def test_nothing_is_tried_twice(monkeypatch):
    """The searches for a group alone and for layers together come by the same settings, and so do names of a config."""
    made, real = [], sized_run._run

    def run(model, analysis, script, sizes, settings):
        values = {(id(holder_of(model, s)), s.field, s.position): s.value for s in settings}
        made.append((id(script), frozenset(sizes.items()), frozenset(values.items())))
        return real(model, analysis, script, sizes, settings)

    monkeypatch.setattr(sized_run, "_run", run)
    evolve.sites(Configured(Config(2)), "widen", example_inputs=X)
    assert len(made) == len(set(made)) > 1


def test_conv_bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 24, "embedding_size": 24, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "head_ratio": 2, "conv_kernel_size": 3, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = transformers.ConvBertModel(transformers.ConvBertConfig(**sizes, **heads, max_position_embeddings=16)).eval()
    tokens = torch.randint(0, 50, (2, 7))
    places = evolve.sites(model, "widen", example_inputs=tokens)
    assert sorted(place.rpartition(".")[2] for place in places) == ["dense", "dense", "key", "key"]
    before = model(tokens).last_hidden_state
    for place in places:
        child = copy.deepcopy(model)
        assert evolve.mutate(child, "widen", site=place, example_inputs=tokens), place
        assert torch.allclose(child(tokens).last_hidden_state, before, atol=1e-5)
    other = places[0].replace("key", "conv_kernel_layer")
    assert evolve.mutate(model, "widen", site=other, example_inputs=tokens)


class Scaled(nn.Module):
    """A block whose group bears the name of a layer inside it."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"conv": nn.Conv1d(12, 6, 1), "norm": nn.BatchNorm1d(6)})
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        y = self.block["norm"](self.block["conv"](x.transpose(1, 2)))
        return self.out(torch.relu(y).mean(-1))


@pytest.mark.parametrize("name", ["block.conv", "block.norm", "block"])
def test_a_group_goes_by_the_name_of_any_layer_that_makes_it(name):
    torch.manual_seed(0)
    ok, message = evolve.mutate(Scaled().eval(), "widen", site=name, example_inputs=X)
    assert ok
    assert "Widened 'block.conv' from 6 to 12" in message


def test_a_layer_that_makes_several_groups_is_asked_which():
    model = nn.Sequential(nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU()), nn.Linear(7, 2))
    ok, message = evolve.mutate(model, "widen", site="0", example_inputs=X)
    assert not ok
    assert "'0.0'" in message
    assert "'0.2'" in message


def test_more_than_was_asked_for_is_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    ok, message = evolve.mutate(model, "widen", site="0", factor=1.5, example_inputs=X)
    assert ok
    assert "has 16 instead of the 12 that were asked for" in message
    assert "instead of" not in evolve.mutate(model, "widen", site="0", factor=2, example_inputs=X).message


class Summed(nn.Module):
    """Two groups meet one integer, each in its own way."""

    def __init__(self):
        super().__init__()
        self.w = 8
        self.a, self.b, self.c, self.d = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        left = self.c(self.a(x)[..., : self.w].relu())
        return left + self.d(self.b(x).view(*x.shape[:-1], self.w).relu())


@pytest.mark.parametrize("site", ["a", "*"])
@pytest.mark.parametrize(("operator", "size"), [("widen", 16), ("narrow", 4)])
def test_groups_that_meet_one_integer_in_different_ways_change_together(operator, size, site):
    torch.manual_seed(0)
    model = Summed()
    assert evolve.sites(model, operator, example_inputs=X) == ["a"]
    before = model(X)
    result = evolve.mutate(model, operator, site=site, example_inputs=X)
    assert result.success, result.message
    assert (model.w, model.a.out_features, model.b.out_features) == (size, size, size)
    if operator == "widen":
        torch.testing.assert_close(model(X), before)


class Attends(nn.Module):
    """Holds a layer like its others that no code mentions."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o, self.cv = (nn.Linear(16, 16) for _ in range(5))

    def forward(self, x):
        return x + self.o((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x))


class Either(Attends):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e6 else x + self.cv(x)


class LooksUp(Attends):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e6 else x + getattr(self, "c" + "vw"[0])(x)


def _block(kind):
    return nn.Sequential(nn.Linear(12, 16), kind(), nn.Linear(16, 2))


@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_a_layer_that_no_code_mentions_holds_nothing_back(operator):
    found = evolve.sites(_block(Attends), operator, example_inputs=X)
    assert found[0] == "0"
    assert "1.v" in found
    for site in found:
        model = _block(Attends)
        result = evolve.mutate(model, operator, site=site, example_inputs=X)
        assert result.success, result.message
        assert "the probe batch never runs '1.cv.weight'" in result.message
        assert model.get_submodule("1.cv").weight.shape == (16, 16)


@pytest.mark.parametrize("kind", [Either, LooksUp])
@pytest.mark.parametrize(("operator", "options"), [("widen", {"init": "random"}), ("narrow", {})])
def test_a_layer_that_may_run_on_another_batch_holds_back_and_sites_agree(operator, options, kind):
    model = _block(kind)
    assert evolve.sites(model, operator, example_inputs=X, **options) == []
    result = evolve.mutate(model, operator, site="0", example_inputs=X, **options)
    assert result.status == "not_applicable"
    assert "The probe batch never runs '1.cv', which is like a layer of '0'" in result.message
