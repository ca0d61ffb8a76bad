"""Two models of one structure have one hash, whatever their parts are called."""

import copy

import pytest
import torch
from torch import nn

import evolve
from evolve.models import build_model
from evolve.structure.analysis import analyse
from evolve.structure.canonical import structure_key


class Two(nn.Module):
    def __init__(self, swapped: bool, width: int = 4, rate: float = 0.0):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, width)
        self.back = nn.Linear(width, 4)
        self.dropout = nn.Dropout(rate)
        self.swapped = swapped

    def forward(self, x):
        one, two = self.one(x).relu(), self.back(self.two(x))
        return self.dropout(two + one if self.swapped else one + two)


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.b, self.c, self.a = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        side = self.c(self.b(x))
        return side + self.a(x).relu()


class Shared(nn.Module):
    def __init__(self, shared: bool):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one if shared else nn.Linear(4, 4)

    def forward(self, x):
        return self.one(x) + self.two(x)


def key(model: nn.Module) -> str:
    return structure_key(analyse(model, torch.zeros(2, 4)))


def test_names_and_the_order_of_addends_do_not_count():
    assert key(Two(False)) == key(Two(True)) == key(Renamed())


def test_weights_do_not_count():
    torch.manual_seed(1)
    one = key(Two(False))
    torch.manual_seed(2)
    assert key(Two(False)) == one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Two(False), Two(False, width=5)),
        (Shared(True), Shared(False)),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.GELU())),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.ReLU(), nn.Linear(4, 4))),
        (nn.Softmax(0), nn.Softmax(1)),
    ],
    ids=["width", "sharing", "activation", "order", "argument"],
)
def test_what_computes_something_else_has_another(one, other):
    assert key(one) != key(other)


def test_the_same_mutations_in_another_order_come_to_the_same():
    base, images = build_model("small_resnet", num_classes=10, in_channels=1, width=8), torch.zeros(4, 1, 8, 8)
    steps = [("widen", {"site": "stage1.0.conv1"}), ("deepen", {"site": "stage3"})]
    found = []
    for order in (steps, steps[::-1]):
        model = copy.deepcopy(base)
        for operator, more in order:
            assert evolve.mutate(model, operator, example_inputs=images, **more)
        found.append(structure_key(analyse(model, images)))
    assert found[0] == found[1] != structure_key(analyse(base, images))
