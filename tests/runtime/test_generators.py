"""One mechanism seeds, saves and restores the generators of every kind of accelerator, with what that kind has."""

import multiprocessing
import random
import threading

import numpy as np
import pytest
import torch
from helpers.fingerprints import rng_state
from torch import nn

import evolve
from evolve.runtime.exclusive import exclusive
from evolve.runtime.generators import preserved_rng, random_state, seed_everything, set_random_state


class Accelerator:
    """Stands for one of torch's device modules. Has what the real one has: anything else is an AttributeError."""

    def __init__(self, devices, started=True):
        self.generators = [torch.Generator().manual_seed(100 + index) for index in range(devices)]
        self.started = started

    def device_count(self):
        return len(self.generators)

    def draw(self):
        return [int(torch.randint(2**31, (), generator=generator)) for generator in self.generators]


class OneDevice(Accelerator):
    """Like `torch.mps`: no `_all`, no `is_initialized`."""

    def get_rng_state(self, device="mps"):
        assert device == "mps"
        return self.generators[0].get_state()

    def set_rng_state(self, new_state, device="mps"):
        assert device == "mps"
        self.generators[0].set_state(new_state)

    def manual_seed(self, seed):
        self.generators[0].manual_seed(seed)


class SeveralDevices(Accelerator):
    """Like `torch.cuda` and `torch.xpu`."""

    def is_initialized(self):
        return self.started

    def _is_in_bad_fork(self):
        return False

    def get_rng_state_all(self):
        assert self.started, "the look has started the accelerator"
        return [generator.get_state() for generator in self.generators]

    def set_rng_state(self, new_state, device):
        self.generators[device].set_state(new_state)

    def manual_seed_all(self, seed):
        for generator in self.generators:
            generator.manual_seed(seed)

    manual_seed = manual_seed_all


class WithoutGenerators:
    """A backend of somebody else that offers nothing."""


def install(monkeypatch, name, module):
    monkeypatch.setattr(torch, name, module, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device(name))
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: module)


KINDS = [("mps", OneDevice, 1), ("xpu", SeveralDevices, 2), ("cuda", SeveralDevices, 3)]


@pytest.mark.parametrize(("name", "cls", "devices"), KINDS)
def test_what_is_drawn_on_an_accelerator_is_drawn_again(monkeypatch, name, cls, devices):
    module = cls(devices)
    install(monkeypatch, name, module)
    expected = cls(devices).draw()
    before = rng_state()
    with preserved_rng(7):
        seeded = module.draw()
        random.random(), np.random.rand(), torch.rand(2)
    with preserved_rng(7):
        assert module.draw() == seeded
    assert seeded == [torch.randint(2**31, (), generator=torch.Generator().manual_seed(7)).item()] * devices
    assert rng_state() == before
    assert module.draw() == expected


@pytest.mark.parametrize(("name", "cls", "devices"), KINDS)
def test_a_saved_state_holds_the_accelerator_and_can_be_put_back(monkeypatch, name, cls, devices):
    module = cls(devices)
    install(monkeypatch, name, module)
    state = random_state()
    assert len(state[name]) == devices
    drawn = (module.draw(), random.random(), np.random.rand(), torch.rand(3).tolist())
    set_random_state(state)
    assert (module.draw(), random.random(), np.random.rand(), torch.rand(3).tolist()) == drawn
    smaller = cls(1)
    install(monkeypatch, name, smaller)
    set_random_state(state)
    assert smaller.draw() == drawn[0][:1]


def test_a_mutation_works_beside_mps(monkeypatch):
    device = OneDevice(1)
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        monkeypatch.setattr(torch.mps, name, getattr(device, name))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device("mps"))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    result = evolve.mutate(model, "widen", site="0", example_inputs=torch.randn(4, 6))
    assert result, result.message
    assert device.draw() == OneDevice(1).draw()


def test_an_accelerator_that_is_not_in_use_is_not_started(monkeypatch):
    module = SeveralDevices(2, started=False)
    install(monkeypatch, "cuda", module)
    expected = SeveralDevices(2).draw()
    with preserved_rng(3):
        pass
    assert "cuda" not in random_state()
    assert module.draw() == expected


def test_an_accelerator_without_generators_is_no_hindrance(monkeypatch):
    install(monkeypatch, "privateuseone", WithoutGenerators())
    with preserved_rng(3):
        first = torch.rand(2)
    with preserved_rng(3):
        assert torch.equal(torch.rand(2), first)
    set_random_state(random_state())


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63 - 1])
def test_everything_is_seeded_with_any_seed(seed):
    with preserved_rng():
        seed_everything(seed)
        one = rng_state()
        torch.rand(1), np.random.rand(), random.random()
        seed_everything(seed)
        assert rng_state() == one


def test_who_would_move_the_generators_waits_until_they_are_put_back():
    entered, order = threading.Event(), []

    def other():
        entered.wait()
        with preserved_rng(1):
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with preserved_rng(0):
        entered.set()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def _draw_in_a_child(answers):
    with preserved_rng(5):
        answers.put(random.random())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_while_another_thread_holds_the_lock_does_not_wait_for_it():
    held, release = threading.Event(), threading.Event()

    def hold():
        with exclusive:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_draw_in_a_child, args=(answers,), daemon=True)
    child.start()
    child.join(20)
    release.set()
    thread.join()
    assert child.exitcode == 0
    with preserved_rng(5):
        assert answers.get() == random.random()
