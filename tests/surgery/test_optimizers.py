"""Optimizers of every kind go through mutations: their averages stay right, all is stepped, or nothing is touched."""

import copy

import pytest
import torch
from helpers.fingerprints import fingerprint
from helpers.optimizers import (
    AttributeLookahead,
    Closed,
    LazyLookahead,
    Muon,
    NovoGrad,
    Queue,
    Sam,
    ScheduleFree,
    Shampoo,
    Soap,
    UnitNorm,
)
from torch import nn

import evolve
from evolve.errors import EvolveError
from evolve.surgery.optimizer import Carrier, as_optimizers

G = torch.Generator().manual_seed(1)
X, Y = torch.randn(16, 6, generator=G), torch.randn(16, 3, generator=G)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model, optimizer, steps):
    optimizers = as_optimizers(optimizer)

    def closure():
        model.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        for one in optimizers:
            one.step(closure)


def with_values(model, values):
    """Outputs with other values in the place of parameters."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for mine, own in zip(twin.parameters(), model.parameters(), strict=True):
            if own in values:
                mine.copy_(values[own])
        return twin(X)


def of_state(optimizer, key):
    return {p: s[key] for p, s in optimizer.state.items() if isinstance(p, torch.Tensor) and key in s}


def asgd(params):
    return torch.optim.ASGD(params, lr=0.05, t0=1, lambd=0.0)


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


# What makes an optimizer, and what it keeps of the weights.
AVERAGING = {
    "asgd": (asgd, lambda o: of_state(o, "ax")),
    "schedule-free z": (ScheduleFree, lambda o: of_state(o, "z")),
    "schedule-free x": (ScheduleFree, lambda o: o.averages()),
    "lookahead, attributes": (
        lambda p: AttributeLookahead(sgd(p)),
        lambda o: {
            p: q for g, s in zip(o.param_groups, o.slow, strict=True) for p, q in zip(g["params"], s, strict=True)
        },
    ),
    "lookahead, lazy": (lambda p: LazyLookahead(sgd(p)), lambda o: of_state(o, "slow")),
    "by id": (Queue, lambda o: {p: o.averages[id(p)] for g in o.param_groups for p in g["params"]}),
}


@pytest.mark.parametrize("operator", ["widen", "deepen", "residual"])
@pytest.mark.parametrize("name", AVERAGING)
def test_what_is_kept_of_the_weights_computes_the_same_function(name, operator):
    make, kept = AVERAGING[name]
    model = net()
    optimizer = make(model.parameters())
    train(model, optimizer, 33)
    before = with_values(model, kept(optimizer))
    assert float((before - model(X)).detach().abs().max()) > 1e-3  # it is another function than the model's
    result = evolve.mutate(model, operator, site="2", optimizer=optimizer, example_inputs=X)
    assert result, result.message
    assert "begins anew" not in result.message
    assert torch.allclose(with_values(model, kept(optimizer)), before, atol=1e-5)
    everything_moves(model, optimizer)


def everything_moves(model, optimizer, steps=8):
    optimizers = as_optimizers(optimizer)
    held = [id(p) for one in optimizers for group in one.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, optimizer, steps)
    assert [n for n, p in model.named_parameters() if torch.equal(p, values[n])] == []


OTHERS = {
    "sam": lambda p: Sam(p, torch.optim.AdamW, lr=0.01),
    "sam over sgd": lambda p: Sam(p, torch.optim.SGD, lr=0.05, momentum=0.9),
    "lists of matrices": Soap,
    "matrices in a dictionary": Shampoo,
    "a scalar for each tensor, string keys": NovoGrad,
    "lookahead of lookahead": lambda p: AttributeLookahead(LazyLookahead(sgd(p))),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


@pytest.mark.parametrize("operator", ["widen", "narrow", "deepen", "residual"])
@pytest.mark.parametrize("name", OTHERS)
def test_state_of_any_form_goes_along(name, operator):
    model = net()
    optimizer = OTHERS[name](model.parameters())
    train(model, optimizer, 10)
    result = evolve.mutate(model, operator, site="2", optimizer=optimizer, example_inputs=X)
    assert result, result.message
    everything_moves(model, optimizer)


def test_products_of_gradients_are_cut_on_both_axes():
    model = net()
    optimizer = Shampoo(model.parameters())
    train(model, optimizer, 5)
    old = {k: v.clone() for k, v in optimizer.state[model[0].weight]["sums"].items()}
    result = evolve.mutate(model, "widen", site="0", add=3, optimizer=optimizer, example_inputs=X)
    (plan,) = result.record.plan["groups"][0]["steps"]
    source, shares = torch.tensor(plan["source"]), torch.tensor(plan["shares"])
    new = optimizer.state[model[0].weight]["sums"]
    assert torch.allclose(new["0"], old["0"][source][:, source] * shares[:, None] * shares)
    assert torch.equal(new["1"], old["1"])


def test_a_bases_that_cannot_be_cut_begin_anew_and_it_is_told():
    model = net()
    optimizer = Soap(model.parameters())
    train(model, optimizer, 5)
    kept = optimizer.state[model[4].bias]["m"].clone()
    result = evolve.mutate(model, "widen", site="0", optimizer=optimizer, example_inputs=X)
    assert "The optimizer's state of 3 parameters begins anew, as it cannot be cut" in result.message
    assert torch.equal(optimizer.state[model[4].bias]["m"], kept)
    assert model[0].weight not in optimizer.state


REFUSED = {
    "norm": (UnitNorm, "widen", "cannot follow"),
    "function that holds parameters": (Closed, "residual", "would not move 1 parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_is_refused_and_nothing_touched(name):
    make, operator, reason = REFUSED[name]
    model = net()
    optimizer = make(model.parameters())
    train(model, optimizer, 5)
    before = fingerprint(model, optimizer)
    result = evolve.mutate(model, operator, site="2", optimizer=optimizer, example_inputs=X)
    assert result.status == "rejected"
    assert reason in result.message
    assert fingerprint(model, optimizer) == before


def test_an_optimizer_that_cannot_be_tried_is_refused():
    class Special(torch.optim.SGD):
        def step(self, loss_scale):
            raise RuntimeError("needs a loss scale")

    model = net()
    optimizer = Special(model.parameters(), lr=0.1)
    result = evolve.mutate(model, "residual", site="2", optimizer=optimizer, example_inputs=X)
    assert result.status == "not_applicable"
    assert "Special" in result.message
    assert "made-up gradients fails" in result.message


# Several optimizers.


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8))
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


TOKENS = torch.randint(11, (4, 5), generator=G)


def speak(model, optimizers, steps):
    for _ in range(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        for one in optimizers:
            one.step()


@pytest.mark.parametrize("site", ["embed", "body", "body.0", "body.2", "head"])
@pytest.mark.parametrize("operator", ["deepen", "residual"])
@pytest.mark.parametrize("make", [Muon, getattr(torch.optim, "Muon", Muon)], ids=["own", "torch"])
def test_new_parameters_join_the_right_one_of_two_optimizers(make, operator, site):
    model = Language()
    hidden = [model.body[0].weight, model.body[2].weight]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    muon, adam = make(hidden), torch.optim.AdamW(rest)
    speak(model, [muon, adam], 3)
    result = evolve.mutate(model, operator, site=site, optimizer=[muon, adam], example_inputs=TOKENS)
    if not result and result.status == "not_applicable":
        pytest.skip(result.message)
    assert result, result.message
    in_muon = {id(p) for p in muon.param_groups[0]["params"]}
    in_adam = {id(p) for group in adam.param_groups for p in group["params"]}
    assert not in_muon & in_adam
    assert in_muon | in_adam == {id(p) for p in model.parameters()}
    assert all(p.dim() == 2 for p in muon.param_groups[0]["params"])
    new = [p for n, p in model.named_parameters() if "evolved" in n and p.dim() == 2]
    if site.startswith("body") and operator == "deepen":
        assert new
        assert {id(p) for p in new} <= in_muon
    if site in ("embed", "head"):
        assert not {id(p) for p in new} & in_muon
    speak(model, [muon, adam], 3)


def test_state_of_both_optimizers_is_cut_and_both_are_put_back():
    model = Language()
    muon = Muon([model.body[0].weight, model.body[2].weight])
    adam = torch.optim.AdamW([p for p in model.parameters() if all(p is not h for h in muon.param_groups[0]["params"])])
    speak(model, [muon, adam], 3)
    before = [fingerprint(model, one) for one in (muon, adam)]
    with evolve.transaction(model, [muon, adam]) as change:
        result = evolve.mutate(model, "widen", site="body.0", optimizer=[muon, adam], example_inputs=TOKENS)
        assert result, result.message
        assert muon.state[model.body[0].weight]["momentum_buffer"].shape == (16, 8)
        assert adam.state[model.body[0].bias]["exp_avg"].shape == (16,)
        change.rollback()
    assert [fingerprint(model, one) for one in (muon, adam)] == before


def test_one_of_two_optimizers_is_told_what_to_do():
    model = net()
    first, second = torch.optim.Adam(model[:2].parameters()), torch.optim.Adam(model[2:].parameters())
    train(model, [first, second], 2)
    message = evolve.mutate(model, "widen", site="0", optimizer=first, example_inputs=X).message
    assert "1 parameters that changed are not in this Adam ('2.weight')" in message
    assert "Pass both, as in optimizer=[first, second]" in message


@pytest.mark.parametrize("wrong", ["adam", {"a": 1}, [torch.optim.SGD(net().parameters()), None]])
def test_what_is_no_optimizer_is_named(wrong):
    with pytest.raises(EvolveError, match="optimizer= takes one optimizer or a sequence"):
        evolve.mutate(net(), "residual", optimizer=wrong, example_inputs=X)


def test_an_optimizer_of_another_model_is_refused():
    result = evolve.mutate(net(), "widen", site="0", optimizer=sgd(net().parameters()), example_inputs=X)
    assert result.status == "not_applicable"
    assert "holds no parameter of this model" in result.message


def test_without_an_optimizer_it_is_told_what_to_give_it():
    assert (
        "No optimizer was passed: give yours the 1 new parameters."
        in evolve.mutate(net(), "residual", site="2").message
    )
    assert "give yours the 3 resized parameters" in evolve.mutate(net(), "widen", site="2", example_inputs=X).message
    assert "No optimizer" not in evolve.mutate(net().eval(), "residual", site="2").message
    assert "No optimizer" not in evolve.mutate(net().requires_grad_(False), "widen", site="2", example_inputs=X).message


def test_hooks_and_counts_of_an_optimizer_do_not_notice_a_trial():
    model = net()
    optimizer, calls = ScheduleFree(model.parameters()), []
    optimizer.register_step_post_hook(lambda *args: calls.append(1))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    train(model, optimizer, 3)
    count = optimizer.param_groups[0]["k"]
    calls.clear()
    assert evolve.mutate(model, "widen", site="2", optimizer=optimizer, example_inputs=X)
    assert calls == []
    assert optimizer.param_groups[0]["k"] == count
    train(model, optimizer, 1)
    schedule.step()
    assert calls == [1]


def test_tied_parameters_join_once():
    model = net()
    optimizer = sgd(model.parameters())
    carrier = Carrier(model, optimizer)
    model[0].again = model[0].extra = nn.Parameter(torch.zeros(3))
    carrier.carry(model, "0")
    assert sum(p is model[0].extra for p in optimizer.param_groups[0]["params"]) == 1
