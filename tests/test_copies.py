"""Values are copied when somebody first writes to them, whichever way, and only then."""

import ctypes

import numpy as np
import pytest
import torch
from fingerprints import fingerprint
from torch import nn

import evolve
from evolve.structure.copies import one_memory, put_back, remembered, settle

WRITES = {
    "in place": lambda p: p.detach().mul_(2),
    "data": lambda p: p.data.add_(1),
    "a view": lambda p: p.data.view(2, -1)[0].fill_(3.0),
    "out": lambda p: torch.add(torch.ones_like(p), 1, out=p.data),
    "foreach": lambda p: torch._foreach_zero_([p.data]),
    "NumPy": lambda p: np.copyto(p.detach().numpy(), 7.0),
    "DLPack": lambda p: torch.from_dlpack(p.detach()).zero_(),
    "a pointer": lambda p: ctypes.memset(p.data_ptr(), 0, 4 * p.numel()),
    "the storage": lambda p: p.untyped_storage().fill_(0),
    "an initialisation": nn.init.normal_,
    "renorm": lambda p: setattr(p, "data", torch.renorm(p.data.mul_(9), 2, 0, 0.1)),
}


@pytest.mark.parametrize("write", WRITES)
def test_whoever_writes_the_copy_stays(write):
    tensor = nn.Parameter(torch.randn(4, 6))
    before = tensor.detach().numpy().copy()
    copy = remembered(tensor)
    assert one_memory(tensor, copy)
    (tensor @ tensor.T).sum().backward()
    assert one_memory(tensor, copy)  # a look is no write
    WRITES[write](tensor)
    assert not one_memory(tensor, copy)
    assert not np.array_equal(tensor.detach().numpy(), before)
    with torch.no_grad():
        put_back(tensor, copy)
    assert np.array_equal(tensor.detach().numpy(), before)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.from_numpy(np.ones(5)),
        torch.ones(5).share_memory_(),
        torch.ones(5).to_sparse(),
        torch.ones(5, device="meta"),
    ],
    ids=["NumPy's", "shared", "sparse", "meta"],
)
def test_what_cannot_be_shared_is_copied_at_once(tensor):
    copy = remembered(tensor)
    assert (copy.layout, copy.device, copy.shape) == (tensor.layout, tensor.device, tensor.shape)
    if tensor.device.type != "meta":
        tensor.mul_(2)
        assert torch.equal(copy.to_dense(), torch.ones(5, dtype=tensor.dtype))
        put_back(tensor, copy)
        assert torch.equal(tensor.to_dense(), torch.ones(5, dtype=tensor.dtype))
    settle([tensor])


def test_afterwards_memory_is_as_it_was():
    tensor = torch.ones(5)
    place = tensor.data_ptr()
    copy = remembered(tensor)
    del copy
    settle([tensor])
    assert tensor.data_ptr() == place
    assert torch.equal(tensor.resize_(50)[:5].mul_(2), torch.full((5,), 2.0))


class Constrained(nn.Module):
    """A forward that writes to its own weights, as those with a largest norm do."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.no_grad():
            self.first.weight.clamp_(-0.1, 0.1)
            self.last.weight.data = torch.renorm(self.last.weight.data.mul_(0.5), 2, 0, 1.0)
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("operator", ["widen", "narrow", "deepen"])
def test_weights_that_a_forward_writes_to_come_back(operator):
    torch.manual_seed(0)
    model = Constrained()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    before = fingerprint(model, optimizer)
    with evolve.transaction(model, optimizer) as change:
        model(torch.randn(4, 6))
        assert fingerprint(model, optimizer) != before
        evolve.mutate(model, operator, site="first", optimizer=optimizer, example_inputs=torch.randn(4, 6))
        change.rollback()
    assert fingerprint(model, optimizer) == before


def test_a_mutation_copies_only_what_it_changes():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert evolve.mutate(model, "widen", site="0", example_inputs=torch.randn(4, 6))
    moved = {name for name, parameter in model.named_parameters() if parameter.data_ptr() != places[name]}
    assert moved == {"0.weight", "0.bias", "2.weight"}
