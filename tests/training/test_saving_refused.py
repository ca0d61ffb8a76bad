"""What `evolve.save`, `evolve.restore` and `evolve.replay` refuse, and why; extra state of modules."""

from pathlib import Path

import pytest
import torch
from helpers import own_loop
from helpers.fingerprints import fingerprint
from helpers.runs import digest
from torch import nn
from torch.optim.swa_utils import AveragedModel

import evolve
from evolve.care.ema import EMA
from evolve.errors import CheckpointError, EvolveError, NonFiniteModelError
from evolve.training.checkpoint import save_checkpoint
from evolve.training.config import TrainingConfig


@pytest.fixture
def saved(tmp_path):
    model, optimizer, ema, records = own_loop.first_half("groups")
    evolve.save(tmp_path / "saved", model, optimizer, records, ema=ema)
    return tmp_path / "saved"


def pair():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def stepped(model, *optimizers):
    model(torch.randn(8, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def sgd(part):
    return torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9)


def adam(part):
    return torch.optim.Adam(part.parameters(), lr=0.001)


OTHER_OPTIMIZERS = {
    "another order": (lambda m: [sgd(m[0]), adam(m[2])], lambda n: [adam(n[2]), sgd(n[0])], "SGD, this one has Adam"),
    "another class": (lambda m: [sgd(m)], lambda n: [torch.optim.RMSprop(n.parameters())], "SGD, this one has RMSprop"),
    "one class": (lambda m: [sgd(m[0]), sgd(m[2])], lambda n: [sgd(n[2]), sgd(n[0])], "does not hold '0.bias'"),
    "half": (lambda m: [sgd(m)], lambda n: [sgd(n[0])], "held 4 .* has 2: it does not hold '2.bias'"),
    "more": (lambda m: [sgd(m[2])], lambda n: [sgd(n)], "held 2 .* has 4: it also holds '0.bias'"),
}


@pytest.mark.parametrize("name", OTHER_OPTIMIZERS)
def test_optimizers_of_another_class_or_over_others_are_refused(tmp_path, name):
    first, second, words = OTHER_OPTIMIZERS[name]
    model = pair()
    optimizers = first(model)
    stepped(model, *optimizers)
    result = evolve.mutate(
        model, "deepen", site="0", optimizer=optimizers, example_inputs=torch.randn(4, 4), strict=True
    )
    evolve.save(tmp_path / "saved", model, optimizers, [result.record])
    fresh = pair()
    others = second(fresh)
    before = fingerprint(fresh, others[0])
    with pytest.raises(CheckpointError, match=words):
        evolve.restore(tmp_path / "saved", fresh, others)
    assert fingerprint(fresh, others[0]) == before
    again = first(fresh)
    evolve.restore(tmp_path / "saved", fresh, again)
    stepped(fresh, *again)
    assert {type(one).__name__ for one in again} == {type(one).__name__ for one in optimizers}


def test_parameters_that_no_optimizer_was_given_are_no_fault(tmp_path):
    model = pair()
    optimizer = sgd(model)
    record = evolve.mutate(model, "deepen", site="0", example_inputs=torch.randn(4, 4), strict=True).record
    evolve.save(tmp_path / "saved", model, optimizer, [record])
    fresh = pair()
    other = sgd(fresh)
    evolve.restore(tmp_path / "saved", fresh, other)
    assert [p.shape for p in other.param_groups[0]["params"]] == [p.shape for p in pair().parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["Adam", "several", "LBFGS"])
def test_optimizer_state_that_is_not_finite_is_not_saved(tmp_path, kind, value):
    model = pair()
    if kind == "LBFGS":
        optimizer = torch.optim.LBFGS(model.parameters())
        optimizer.state[model[0].weight]["old_dirs"] = [torch.full((3,), value)]
        words = "'old_dirs' of '0.weight'"
    else:
        optimizer = [sgd(model[2]), adam(model[0])] if kind == "several" else adam(model)
        stepped(model, *(optimizer if kind == "several" else [optimizer]))
        evolve.save(tmp_path / "fine", model, optimizer, [])
        one = optimizer[1] if kind == "several" else optimizer
        one.state[model[0].weight]["exp_avg"][0, 0] = value
        words = "'exp_avg' of '0.weight'"
    with pytest.raises(NonFiniteModelError, match=words):
        evolve.save(tmp_path / "saved", model, optimizer, [])
    assert not (tmp_path / "saved").exists()


STEPPED = ["Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"]


@pytest.mark.parametrize("name", STEPPED)
def test_no_optimizer_of_torch_keeps_an_infinity(tmp_path, name):
    model = pair()
    optimizer = getattr(torch.optim, name)(model.parameters())
    stepped(model, optimizer)
    evolve.save(tmp_path / "saved", model, optimizer, [])
    assert (tmp_path / "saved" / "state.pt").is_file()


class Counting(nn.Linear):
    extra = None

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


@pytest.mark.parametrize(
    "extra",
    [{"c": 5}, {"seen": [torch.arange(3.0), (1, "two")]}, 7, "text", torch.ones(2)],
    ids=["dict", "nested", "int", "text", "tensor"],
)
def test_extra_state_comes_back(tmp_path, extra):
    def built():
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Counting(6, 2))

    model = built()
    record = evolve.mutate(model, "widen", site="0", example_inputs=torch.randn(4, 4), strict=True).record
    model[2].extra = extra
    evolve.save(tmp_path / "saved", model, None, [record])
    fresh = built()
    evolve.restore(tmp_path / "saved", fresh, None)
    assert digest(fresh[2].extra) == digest(extra)


@pytest.mark.parametrize(
    "extra", [{"f": lambda: 1}, {"m": Counting(1, 1)}, {"path": Path()}], ids=["code", "module", "path"]
)
def test_extra_state_that_cannot_be_read_again_is_refused(tmp_path, extra):
    model = nn.Sequential(Counting(2, 2))
    model[0].extra = extra
    with pytest.raises(CheckpointError, match=r"extra state of module '0' cannot be saved: .*get_extra_state"):
        evolve.save(tmp_path / "saved", model, None, [])
    assert not (tmp_path / "saved").exists()


def test_a_run_keeps_extra_state_and_refuses_state_that_is_not_finite(tmp_path):
    def built():
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), Counting(6, 2))

    x, y = torch.randn(16, 4), torch.randint(2, (16,))
    model = built()
    model[3].extra = {"c": 5}
    run = evolve.Evolver(
        model, (x, y), (x, y), training=TrainingConfig(epochs=1, device="cpu"), output=tmp_path / "run", progress=False
    )
    run.run()
    assert evolve.load(tmp_path / "run", model=built())[3].extra == {"c": 5}
    values = next(iter(run.state.optimizer.state.values()))
    next(value for value in values.values() if value.dim())[0] = float("nan")
    with pytest.raises(NonFiniteModelError, match=r"of '1\.weight'"):
        save_checkpoint(tmp_path / "run", run.state, run.lineage, {}, keep=1)


def result_of(model):
    return evolve.mutate(model, "widen", site="0", example_inputs=torch.randn(4, 4), seed=1, strict=True)


RECORDS = {
    "results": (lambda result: [result], "'MutationResult' at index 0"),
    "a result": (lambda result: result, "'MutationResult'"),
    "a record": (lambda result: result.record, "'Record'"),
    "dicts": (lambda result: [result.record, result.record.model_dump()], "'dict' at index 1"),
    "a dict": (lambda result: result.record.model_dump(), "'dict'"),
    "None": (lambda result: None, "'NoneType'"),
    "text": (lambda result: "lineage.jsonl", "'str'"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_no_sequence_of_records_is_named(tmp_path, name):
    made, found = RECORDS[name]
    model = pair()
    given = made(result_of(model))
    words = f"records: expected a sequence of Records, found {found}; pass result.record"
    with pytest.raises(EvolveError, match=words):
        evolve.save(tmp_path / "saved", model, None, given)
    with pytest.raises(EvolveError, match=words):
        evolve.replay(pair(), given)


@pytest.mark.parametrize("model", [None, "x", [pair()], nn.Linear], ids=["None", "text", "list", "class"])
def test_what_is_no_model_is_named(saved, model):
    for call in (
        lambda: evolve.save(saved, model, None, []),
        lambda: evolve.restore(saved, model, None),
        lambda: evolve.replay(model, []),
    ):
        with pytest.raises(EvolveError, match=r"model: expected an nn\.Module\. Found"):
            call()


@pytest.mark.parametrize("ema", [3, pair(), "EMA", EMA], ids=["int", "module", "text", "class"])
def test_what_is_no_average_is_named(saved, ema):
    model, optimizer, _ = own_loop.parts("groups")
    words = f"ema: expected .* found '{type(ema).__name__}'. Pass EMA"
    for call in (
        lambda: evolve.save(saved, model, optimizer, [], ema=ema),
        lambda: evolve.restore(saved, model, optimizer, ema=ema),
        lambda: evolve.replay(model, [], ema=ema),
    ):
        with pytest.raises(EvolveError, match=words):
            call()


@pytest.mark.parametrize("swapped", [False, True])
def test_an_average_of_another_kind_is_refused(tmp_path, swapped):
    model = pair()
    averages = [EMA(model, 0.9), AveragedModel(model)]
    one, other = reversed(averages) if swapped else averages
    evolve.save(tmp_path / "saved", model, None, [], ema=one)
    with pytest.raises(CheckpointError, match=f"with {type(one).__name__}, passed {type(other).__name__}"):
        evolve.restore(tmp_path / "saved", model, None, ema=other)


@pytest.mark.parametrize("optimizer", [3, [3]])
def test_what_is_no_optimizer_is_named(saved, optimizer):
    with pytest.raises(EvolveError, match="found 'int'"):
        evolve.restore(saved, own_loop.parts("groups")[0], optimizer)
