"""Threads that look at and change models, and threads that train others meanwhile: none notices the others."""

import contextlib
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.fingerprints import rng_state
from torch import nn
from torch.nn.modules import module as every_module

import evolve
from evolve.runtime.generators import preserved_rng
from evolve.structure.analysis import analyse
from evolve.structure.latency import latency

MUTATIONS = 3  # of each thread; `benchmarks/threads.py` makes fifty


def dense():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutional():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


class Attending(nn.Module):
    """Encoder layers of PyTorch, which run fused in eval mode."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


SUBJECTS = [
    (dense, lambda: torch.linspace(-1, 1, 24).reshape(4, 6), ["residual", "deepen", "widen"], "0"),
    (convolutional, lambda: torch.linspace(-1, 1, 768).reshape(4, 3, 8, 8), ["widen", "residual", "kernel"], "0"),
    (Attending, lambda: torch.linspace(-1, 1, 96).reshape(2, 6, 8), ["widen", "residual"], "encoder.layers.0.linear1"),
    (dense, lambda: torch.linspace(-1, 1, 24).reshape(4, 6), ["widen", "narrow"], "2"),
]


def settings():
    """What the process holds that a look or a change could leave behind."""
    hooks = [name for name in vars(every_module) if name.startswith("_global") and getattr(every_module, name)]
    backends = torch.backends.cuda
    return (
        hooks,
        torch.backends.mha.get_fastpath_enabled(),
        [backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled(), backends.math_sdp_enabled()],
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        sys.getrecursionlimit(),
        rng_state(),
    )


@pytest.fixture(autouse=True)
def quick_turns():
    """Threads take turns far more often than usual, so that they meet wherever they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*tasks):
    """Runs tasks in threads that start at once; returns what they return, raises what they raise."""
    start = threading.Barrier(len(tasks))

    def run(task):
        start.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, task) for task in tasks]]


def mutations(subject):
    """Mutates a model some times over; returns its records and its outputs."""
    build, inputs, operators, site = subject
    with preserved_rng(0):
        model = build()
    x, optimizer = inputs(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    records = []
    for turn in range(MUTATIONS):
        operator = operators[turn % len(operators)]
        result = evolve.mutate(model, operator, site=site, optimizer=optimizer, example_inputs=x, seed=turn)
        assert result.status in ("applied", "not_applicable"), result.message
        records.append((result.status, result.message, result.record.plan))
    model.eval()
    with torch.no_grad():
        return records, model(x)


def test_threads_that_mutate_do_what_each_does_alone():
    alone = [mutations(subject) for subject in SUBJECTS]
    assert sum(status == "applied" for records, _ in alone for status, *_ in records) >= 3 * MUTATIONS
    before = settings()
    found = together(*[lambda subject=subject: mutations(subject) for subject in SUBJECTS])
    assert settings() == before
    for (records, outputs), (expected, expected_outputs) in zip(found, alone, strict=True):
        assert records == expected
        assert torch.equal(outputs, expected_outputs)


def operations(analysis):
    return [[(op.name, op.call) for op in tape.ops] for tape in analysis.tapes]


@pytest.mark.parametrize(
    "look",
    [
        lambda model, x: operations(analyse(model, x)),
        lambda model, x: evolve.sites(model, "residual", example_inputs=x),
        lambda model, x: evolve.sites(model, "widen", example_inputs=x),
        lambda model, x: list(latency(model, x, repetitions=2)),
    ],
    ids=["analyse", "sites of blocks", "sites of groups", "latency"],
)
def test_looks_see_their_own_model_alone(look):
    subjects = [(build, inputs()) for build, inputs, *_ in SUBJECTS]
    alone = [look(build(), x) for build, x in subjects]
    before = settings()
    tasks = [lambda build=build, x=x: [look(build(), x) for _ in range(3)] for build, x in subjects]
    found = together(*tasks)
    assert settings()[:-1] == before[:-1]  # building a model draws its weights
    assert found == [[one] * 3 for one in alone]


def trained(build, x, stop=None, steps=0):
    """Trains a model and looks at its outputs in eval mode after each step; draws from a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    outputs = []
    while len(outputs) < steps if stop is None else not stop.is_set():
        model.train()
        optimizer.zero_grad()
        model(x + torch.randn(x.shape, generator=generator)).square().mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            outputs.append(model(x))
        assert torch.is_grad_enabled()
        assert all(not module.training for module in model.modules())
        assert torch.tensor(1.0).dtype == torch.float32
    return outputs


@pytest.mark.parametrize("build", [convolutional, Attending])
def test_a_thread_that_trains_gets_what_it_gets_alone(build):
    x = next(inputs for known, inputs, *_ in SUBJECTS if known is build)()
    stop = threading.Event()

    def change():
        with contextlib.ExitStack() as stack:
            stack.callback(stop.set)
            return [mutations(subject) for subject in SUBJECTS[:3]]

    outputs, _ = together(lambda: trained(build, x, stop), change)
    assert len(outputs) > 10, "training was held up"
    alone = trained(build, x, steps=len(outputs))
    assert all(torch.equal(one, other) for one, other in zip(outputs, alone, strict=True))


def test_two_threads_may_change_one_model_in_turns():
    model, x = dense(), torch.linspace(-1, 1, 24).reshape(4, 6)
    results = together(
        *[
            lambda seed=seed: [evolve.mutate(model, "deepen", site="0", example_inputs=x, seed=seed) for _ in range(2)]
            for seed in range(3)
        ]
    )
    assert all(result.success for some in results for result in some), results
    assert {r.record.params_after - r.record.params_before for some in results for r in some} == {160}
    assert evolve.mutate(model, "widen", site="2", example_inputs=x)


def test_a_transaction_keeps_other_changes_waiting_until_it_ends():
    model, other = dense(), dense()
    x, order = torch.linspace(-1, 1, 24).reshape(4, 6), []

    def change():
        evolve.mutate(other, "widen", site="0", example_inputs=x)
        order.append("other")

    thread = threading.Thread(target=change)
    with evolve.transaction(model) as transaction:
        random.random(), np.random.rand(), torch.rand(1)
        thread.start()
        thread.join(0.05)
        order.append("first")
        transaction.rollback()
    thread.join()
    assert order == ["first", "other"]


def test_a_forward_of_the_same_module_in_another_thread_is_not_recorded():
    """As in a model that shares a part with the one that is looked at."""
    started, seen, shared = threading.Event(), threading.Event(), nn.Linear(6, 6)

    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = shared

        def forward(self, x):
            if threading.current_thread() is threading.main_thread():
                started.set()
                seen.wait(5)
            return self.shared(x)

    def call():
        started.wait(5)
        given = shared(torch.ones(7, 6))
        seen.set()
        return given

    model = Waiting()
    with ThreadPoolExecutor(1) as pool:
        given = pool.submit(call)
        analysis = analyse(model, torch.ones(2, 6))
        assert torch.equal(given.result(), shared(torch.ones(7, 6)))
    assert [call.module for call in analysis.tapes[0].calls] == ["", "shared"]
