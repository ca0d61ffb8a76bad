"""The structure is analysed anew where anything has changed that a forward can read."""

import dataclasses
import functools
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evolve


@dataclasses.dataclass
class Config:
    depth: int
    inner: object = None


class Slotted:
    __slots__ = ("depth",)

    def __init__(self, depth):
        self.depth = depth


def _settings():
    return type("Settings", (), {"depth": 1})


class Repeats(nn.Module):
    """Calls one layer as often as something that it holds says."""

    depth = 1

    def __init__(self, held, read):
        super().__init__()
        self.layer, self.held, self.read = nn.Linear(6, 6), held, read

    def forward(self, x):
        for _ in range(self.read(self)):
            x = torch.relu(self.layer(x))
        return x


def _set(item, name, value):
    setattr(item, name, value)


def _of_class(module):
    return type(module).depth


def _set_class(module):
    type(module).depth = 2


HELD = {
    "list": (lambda: [1], lambda m: m.held[0], lambda m: m.held.__setitem__(0, 2)),
    "dict": (lambda: {"n": 1}, lambda m: m.held["n"], lambda m: m.held.update(n=2)),
    "nested": (lambda: [{"n": (0, [1])}], lambda m: m.held[0]["n"][1][0], lambda m: m.held[0]["n"][1].insert(0, 2)),
    "length": (lambda: [0], lambda m: len(m.held), lambda m: m.held.append(0)),
    "set": (lambda: {5}, lambda m: len(m.held), lambda m: m.held.add(6)),
    "deque": (lambda: deque([1]), lambda m: m.held[0], lambda m: m.held.appendleft(2)),
    "dataclass": (lambda: Config(1), lambda m: m.held.depth, lambda m: _set(m.held, "depth", 2)),
    "config in a config": (
        lambda: Config(0, SimpleNamespace(more=Config(1))),
        lambda m: m.held.inner.more.depth,
        lambda m: _set(m.held.inner.more, "depth", 2),
    ),
    "slots": (lambda: Slotted(1), lambda m: m.held.depth, lambda m: _set(m.held, "depth", 2)),
    "partial": (
        lambda: functools.partial(int, "1"),
        lambda m: m.held(),
        lambda m: _set(m, "held", functools.partial(int, "2")),
    ),
    "module in a list": (
        lambda: [Repeats(1, None)],
        lambda m: m.held[0].held,
        lambda m: _set(m.held[0], "held", 2),
    ),
    "number in a tuple of lists": (lambda: ([1],), lambda m: m.held[0][0], lambda m: m.held[0].__setitem__(0, 2)),
    "none": (lambda: None, lambda m: 1 if m.held is None else 2, lambda m: _set(m, "held", 5)),
    "attribute of a held class": (_settings, lambda m: m.held.depth, lambda m: _set(m.held, "depth", 2)),
    "attribute of the class of a held object": (
        _settings(),
        lambda m: m.held.depth,
        lambda m: _set(type(m.held), "depth", 2),
    ),
    "attribute of a base of a class in a list": (
        lambda: [type("Small", (_settings(),), {})],
        lambda m: m.held[0].depth,
        lambda m: _set(m.held[0].__mro__[1], "depth", 2),
    ),
    "class": (lambda: 0, _of_class, _set_class),
    "buffer": (
        lambda: 0,
        lambda m: int(m.count),
        lambda m: m.count.fill_(2),
    ),
    "input": (lambda: 0, lambda m: 1 + m.held, lambda m: _set(m, "held", True)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_change_is_noticed(name, monkeypatch):
    make, read, change = HELD[name]
    monkeypatch.setattr(Repeats, "depth", 1)
    model, x = Repeats(make(), read), torch.randn(4, 6)
    if name == "buffer":
        model.register_buffer("count", torch.tensor(1))
    assert evolve.analyse(model, x).flops({}) == 72
    change(model)
    assert evolve.analyse(model, x).flops({}) == 144


def test_what_has_not_changed_is_remembered():
    config = Config(1, {"a": [1, 2], "self": None})
    config.inner["self"] = config  # a circle
    model, x = nn.Sequential(Repeats(config, lambda m: m.held.depth), nn.BatchNorm1d(6)), torch.randn(4, 6)
    first = evolve.analyse(model, x)
    model.train()(x).sum().backward()
    assert evolve.analyse(model, torch.randn(4, 6)) is first
    config.depth = 3
    assert evolve.analyse(model, x) is not first
