"""Replay carries optimizers and averages, leaves nothing half done, and by-name state finds its way."""

import copy
import io

import pytest
import torch
from helpers.fingerprints import fingerprint
from helpers.optimizers import AttributeLookahead, NovoGrad, Queue, Sam, ScheduleFree, Soap
from torch import nn
from torch.optim.swa_utils import AveragedModel

import evolve
from evolve.care.ema import EMA
from evolve.errors import CheckpointError, EvolveError
from evolve.surgery.optimizer_names import load_optimizer_by_name, optimizer_by_name

G = torch.Generator().manual_seed(1)
X, Y = torch.randn(16, 6, generator=G), torch.randn(16, 3, generator=G)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(self.first(x)))


def train(model, optimizers, steps=5):
    def closure():
        model.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        for one in optimizers:
            one.step(closure)


def adam(model):
    return [torch.optim.Adam(model.parameters(), lr=0.01)]


def two(model):
    return [
        torch.optim.SGD([model.first.weight, model.first.bias], lr=0.05, momentum=0.9),
        torch.optim.Adam([*model.body.parameters(), *model.head.parameters()], lr=0.01),
    ]


MAKERS = {
    "adam": adam,
    "two": two,
    "sam": lambda m: [Sam(m.parameters(), torch.optim.AdamW, lr=0.01)],
    "string keys": lambda m: [NovoGrad(m.parameters())],
    "lists": lambda m: [Soap(m.parameters())],
    "by id, queues": lambda m: [Queue(m.parameters())],
    "lookahead in attributes": lambda m: [AttributeLookahead(adam(m)[0])],
    "schedule-free": lambda m: [ScheduleFree(m.parameters())],
}


def mutated(model, optimizers):
    """Mutates a submodule and the whole, with steps between; returns the records of each."""
    records = []
    inner = model.body
    features = model.first(X).detach()
    for operator, site in (("deepen", "1"), ("widen", "1")):
        result = evolve.mutate(inner, operator, site=site, optimizer=optimizers, example_inputs=features, seed=3)
        assert result, result.message
        records.append(result.record)
        train(model, optimizers, 2)
    return records


@pytest.mark.parametrize("name", MAKERS)
def test_state_by_name_finds_its_parameters_after_a_replay(name):
    model = Net()
    optimizers = MAKERS[name](model)
    train(model, optimizers)
    records = mutated(model, optimizers)
    saved, weights = optimizer_by_name(model, optimizers), copy.deepcopy(model.state_dict())
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    again = Net()
    evolve.replay(again.body, records)
    again.load_state_dict(weights)
    others = MAKERS[name](again)  # in another order: the inserted block is in its place, not at the end
    read = torch.load(file, weights_only=name != "by id, queues")
    load_optimizer_by_name(again, others, read)
    train(model, optimizers, 12)
    train(again, others, 12)
    for mine, parameter in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, parameter, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "two", "schedule-free", "lookahead in attributes"])
def test_replay_carries_optimizers_as_the_mutation_did(name):
    model, again = Net(), Net()
    optimizers, others = MAKERS[name](model), MAKERS[name](again)
    train(model, optimizers)
    train(again, others)
    features = model.first(X).detach()
    records = []
    for operator, site in (("deepen", "1"), ("widen", "1")):
        result = evolve.mutate(model.body, operator, site=site, optimizer=optimizers, example_inputs=features, seed=3)
        records.append(result.record)
    evolve.replay(again.body, records, optimizer=others)
    for mine, own in zip(others, optimizers, strict=True):
        shapes = [[tuple(p.shape) for p in group["params"]] for group in mine.param_groups]
        assert shapes == [[tuple(p.shape) for p in group["params"]] for group in own.param_groups]
    again.load_state_dict(model.state_dict())
    train(model, optimizers)
    train(again, others)
    for mine, parameter in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, parameter, atol=1e-6)


def test_torchs_own_state_dict_fits_after_a_replay_with_the_optimizer():
    model = Net()
    (optimizer,) = optimizers = adam(model)
    train(model, optimizers)
    records = mutated(model, optimizers)
    again = Net()
    (other,) = others = adam(again)
    evolve.replay(again.body, records, optimizer=other)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    names = {id(p): n for n, p in model.named_parameters()}
    for n, p in again.named_parameters():
        own = next(q for q in optimizer.state if names[id(q)] == n)
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[own]["exp_avg"])
    train(model, optimizers)
    train(again, others)
    for mine, parameter in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, parameter, rtol=0, atol=1e-7), float((mine - parameter).abs().max())


def sequential():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def records_of(model):
    widened = evolve.mutate(model, "widen", site="0", example_inputs=X, seed=1)
    return [widened.record, evolve.mutate(model, "deepen", site="0", example_inputs=X, seed=2).record]


def test_a_replay_that_fails_leaves_model_optimizer_and_averages():
    model = sequential()
    records = records_of(sequential())
    broken = records[1].model_copy(update={"params_after": 7})
    (optimizer,) = optimizers = adam(model)
    train(model, optimizers)
    ema = EMA(model, 0.9)
    averaged = AveragedModel(model)
    before = fingerprint(model, optimizer), fingerprint(averaged), {k: v.clone() for k, v in ema.shadow.items()}
    for follower in (ema, averaged):
        with pytest.raises(EvolveError, match="should have 7 parameters"):
            evolve.replay(model, [records[0], broken], optimizer=optimizer, ema=follower)
    assert (fingerprint(model, optimizer), fingerprint(averaged)) == before[:2]
    assert all(torch.equal(ema.shadow[name], value) for name, value in before[2].items())


def test_compiled_models_are_replayed_underneath():
    records = records_of(sequential())
    model = sequential()
    evolve.replay(torch.compile(model), records)
    assert model[0].out_features == 16


@pytest.mark.parametrize("make", [lambda m: EMA(m, 0.9), AveragedModel], ids=["ema", "averaged model"])
def test_averages_follow_a_replay(make):
    model = sequential()
    follower, (optimizer,) = make(model), adam(model)
    for _ in range(5):
        train(model, [optimizer], 2)
        follower.update(model) if isinstance(follower, EMA) else follower.update_parameters(model)

    def averaged():
        if isinstance(follower, AveragedModel):
            return follower(X).detach()
        with follower.applied_to(model):
            return model(X).detach()

    before = averaged()
    evolve.replay(model, records_of(sequential()), optimizer=optimizer, ema=follower)
    assert torch.allclose(averaged(), before, atol=1e-5)
    train(model, [optimizer], 2)
    follower.update(model) if isinstance(follower, EMA) else follower.update_parameters(model)


def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    model = Net()
    optimizers = two(model)
    train(model, optimizers)
    saved = optimizer_by_name(model, optimizers)
    with pytest.raises(CheckpointError, match="has 2 optimizers, 1 were passed"):
        load_optimizer_by_name(model, optimizers[0], saved)
    saved = optimizer_by_name(model, Sam(model.parameters(), torch.optim.SGD, lr=0.1))
    with pytest.raises(CheckpointError, match="holds 1 others inside"):
        load_optimizer_by_name(model, torch.optim.SGD(model.parameters()), saved)
