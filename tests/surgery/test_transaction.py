"""In place or not at all: hundreds of mutations taken back, on demand and by failure, leave no bit and no byte."""

import gc
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fingerprints import fingerprint, rng_state
from torch import nn
from torch.nn import functional as F

import evolve
import evolve.mutation.attempt
from evolve.operators import operators
from evolve.operators.residual import Residual
from evolve.surgery.optimizer import Carrier

CYCLES, FAILURES = 300, 100
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: on a busy machine threads wait for one another far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Convolutions, BatchNorm, dropout, a frozen layer, a buffer and an attribute that forward counts up."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)
        )
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(32, 1000)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.features[0].requires_grad_(False)

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        return self.head(self.drop(self.features(x).mean((2, 3))))


def trained():
    """A model and its optimizer with state, gradients and generators that stand somewhere."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        optimizer.step()
    return model, optimizer


X = torch.linspace(-1, 1, 4 * 3 * 64).reshape(4, 3, 8, 8)


def resident():
    """Resident memory in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(cycle, count, warm_up=60):
    """Growth of resident memory over `count` cycles after a warm-up."""
    for _ in range(warm_up):
        cycle()
    before = resident()
    for _ in range(count):
        cycle()
    return resident() - before


needs_statm = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")


@needs_statm
def test_insertions_rolled_back_leave_no_bit_and_no_memory():
    model, optimizer = trained()
    before = fingerprint(model, optimizer)
    plans = [("residual", "features", {}), ("deepen", "features", {}), ("residual", "features.0:2", {"init": "random"})]
    turn = 0

    def cycle():
        nonlocal turn
        operator, site, options = plans[turn % len(plans)]
        turn += 1
        with evolve.transaction(model, optimizer) as change:
            result = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=X, **options)
            assert result.success, result.message
            assert len(list(model.parameters())) > 8
            if turn % 50 == 0:  # training inside is taken back as well
                model(X).sum().backward()
                optimizer.step()
                random.random(), np.random.rand(), torch.rand(1)
            change.rollback()

    growth = grown(cycle, CYCLES)
    assert turn == CYCLES + 60
    assert fingerprint(model, optimizer) == before
    assert growth < 5 * MEGABYTE, f"{growth / MEGABYTE:.1f} MB"


class BrokenError(RuntimeError):
    """Fails on purpose."""


def _break_probe(monkeypatch):
    def hook(module, args, output):
        random.random(), np.random.rand(), torch.rand(3)
        raise BrokenError("in the probe")

    # A model that fails in the middle of its forward, after statistics and counters have moved.
    def arm(model):
        return [model.head.register_forward_hook(hook)]

    return arm


def _break_plan(monkeypatch):
    def plan(self, model, site, probe):
        torch.rand(3)
        raise BrokenError("in the plan")

    monkeypatch.setattr(Residual, "plan", plan)


def _break_build(monkeypatch):
    whole = Residual.apply

    def apply(self, model, site, plan):
        whole(self, model, site, plan)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter))
            model.seen.fill_(-1)
        model.head.weight.data = torch.zeros(2, 2)
        model.features[1] = nn.Identity()
        model.drop.eval()
        model.calls, model.extra = -1, []
        raise BrokenError("in the build")

    monkeypatch.setattr(Residual, "apply", apply)


def _break_optimizer(monkeypatch):
    whole = Carrier.carry

    def carry(self, *args, **options):
        whole(self, *args, **options)
        (optimizer,) = self.optimizers
        for state in optimizer.state.values():
            state["exp_avg"].zero_()
            state["step"] += 5
        optimizer.param_groups[0]["lr"] = 7
        optimizer.defaults["lr"] = 7
        raise BrokenError("in the optimizer's care")

    monkeypatch.setattr(Carrier, "carry", carry)


def _break_verify(monkeypatch):
    def compare(self):
        self._model(X).sum().backward()
        raise BrokenError("in the verification")

    monkeypatch.setattr(evolve.mutation.verify.Verification, "compare", compare)


STAGES = {
    "probe": (_break_probe, "not_applicable"),
    "plan": (_break_plan, "failed"),
    "build": (_break_build, "failed"),
    "optimizer": (_break_optimizer, "failed"),
    "verify": (_break_verify, "failed"),
}


@needs_statm
@pytest.mark.parametrize("stage", STAGES)
def test_insertions_that_fail_leave_no_bit_and_no_memory(monkeypatch, stage):
    break_it, status = STAGES[stage]
    model, optimizer = trained()
    arm = break_it(monkeypatch)
    if arm is not None:
        arm(model)
    before = fingerprint(model, optimizer)
    count = 0

    def cycle():
        nonlocal count
        count += 1
        result = evolve.mutate(model, "residual", site="features", optimizer=optimizer, example_inputs=X, seed=count)
        assert result.status == status
        assert "BrokenError: in the " in result.message
        if count % 20 == 0:
            assert fingerprint(model, optimizer) == before

    growth = grown(cycle, FAILURES, warm_up=40)
    assert fingerprint(model, optimizer) == before
    assert growth < 5 * MEGABYTE, f"{growth / MEGABYTE:.1f} MB"
    monkeypatch.undo()
    if arm is None:
        assert evolve.mutate(model, "residual", site="features", optimizer=optimizer, example_inputs=X)


def test_a_rejected_change_leaves_no_bit():
    @evolve.operator("louder", preserves="exact")
    def louder(model, site, context):
        model.head.weight.data.mul_(2)
        return True, "twice as loud"

    try:
        model, optimizer = trained()
        before = fingerprint(model, optimizer)
        for _ in range(10):
            result = evolve.mutate(model, "louder", site="head", optimizer=optimizer, example_inputs=X)
            assert result.status == "rejected"
            assert fingerprint(model, optimizer) == before
    finally:
        operators.unregister("louder")


def test_what_is_learnt_after_a_rollback_is_what_would_have_been():
    ends = []
    for taken_back in (False, True):
        model, optimizer = trained()
        if taken_back:
            for operator in ("residual", "deepen"):
                with evolve.transaction(model, optimizer) as change:
                    assert evolve.mutate(model, operator, site="features", optimizer=optimizer, example_inputs=X)
                    change.rollback()
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_exception_rolls_back_and_goes_on():
    model, optimizer = trained()
    before = fingerprint(model, optimizer)
    attempt = evolve.transaction(model, optimizer)
    with pytest.raises(KeyError, match="mine"), attempt:  # noqa: PT012 - the mutation belongs inside
        assert evolve.mutate(model, "deepen", site="features", optimizer=optimizer, example_inputs=X)
        model.half()
        raise KeyError("mine")
    assert fingerprint(model, optimizer) == before


def test_a_transaction_without_rollback_keeps_the_change_and_the_generators():
    model, optimizer = trained()
    state = rng_state()
    with evolve.transaction(model, optimizer):
        assert evolve.mutate(model, "residual", site="features", optimizer=optimizer, example_inputs=X)
        random.random(), np.random.rand(), torch.rand(1)
    assert rng_state() == state
    assert "evolved" in dict(model.named_children())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.evolved.parameters()} <= held


def test_gradients_survive_a_mutation_that_is_kept():
    model, optimizer = trained()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    assert evolve.mutate(model, "residual", site="features", optimizer=optimizer, example_inputs=X)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in gradients)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
    assert (model.calls, float(model.seen)) == (2, 8.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accelerator_memory_returns_to_the_byte():
    model, _ = trained()
    model.cuda()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def cycle():
        with evolve.transaction(model, optimizer) as change:
            assert evolve.mutate(model, "residual", site="features", optimizer=optimizer, example_inputs=X)
            change.rollback()

    cycle()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        cycle()
        assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize(
    "turn",
    [lambda p: setattr(p, "data", p.data.t()), lambda p: p.detach().t_(), lambda p: setattr(p, "data", p.data.conj())],
    ids=["transposed", "transposed in place", "conjugated"],
)
def test_memory_that_is_seen_in_another_way_is_seen_as_before(turn):
    weight = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
    model = nn.Module()
    model.register_parameter("weight", weight)
    before, place = weight.detach().clone(), weight.data_ptr()
    with evolve.transaction(model) as change:
        turn(weight)
        change.rollback()
    assert torch.equal(weight, before)
    assert (weight.data_ptr(), weight.stride(), weight.is_conj()) == (place, (3, 1), False)


def test_attributes_that_change_places_change_back():
    model = nn.Linear(2, 2)
    model.front, model.back = "front", "back"
    with evolve.transaction(model) as change:
        front, back = vars(model).pop("front"), vars(model).pop("back")
        model.back, model.front = front, back
        change.rollback()
    assert (model.front, model.back) == ("front", "back")


@pytest.mark.parametrize("operator", ["widen", "narrow"])
def test_a_model_that_tells_of_a_part_of_its_parameters(operator):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16)).requires_grad_(False)
            self.head = nn.Linear(16, 3)

        def parameters(self, recurse=True):
            return self.head.parameters(recurse)

        def forward(self, x):
            return self.head(self.body(x).relu())

    model = Frozen()
    result = evolve.mutate(model, operator, site="body.2", example_inputs=torch.randn(4, 8))
    assert result, result.message
    assert model.head.in_features == {"widen": 32, "narrow": 8}[operator]
    weight = model.body[0].weight
    before = weight.detach().clone()
    with evolve.transaction(model) as change:
        with torch.no_grad():
            weight.zero_()
        change.rollback()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("operator", ["widen", "residual"])
def test_an_expanded_buffer_is_no_hindrance(operator):
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    model.register_buffer("scale", torch.arange(3.0)[:, None].expand(3, 5))
    with evolve.transaction(model) as change:
        model.scale[:, :1] += 1
        change.rollback()
    assert torch.equal(model.scale, torch.arange(3.0)[:, None].expand(3, 5))
    answer = evolve.mutate(model, operator, site="0", example_inputs=torch.randn(4, 5))
    assert answer, answer.message
    assert model.scale.stride() == (1, 0)
