"""A mutation that is planned and not made."""

import torch
from helpers.fingerprints import fingerprint
from torch import nn

import evolve
from evolve.mutation.preview import preview

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def test_it_says_what_would_be_done_and_touches_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before, state = fingerprint(model, optimizer), torch.get_rng_state()
    options = {"target": {"params": 0.6}, "criterion": "random"}
    plan = preview(model, "narrow", "*", example_inputs=X, seed=3, **options)
    assert fingerprint(model, optimizer) == before
    assert torch.equal(torch.get_rng_state(), state)
    result = evolve.mutate(model, "narrow", site="*", example_inputs=X, seed=3, **options)
    assert plan == result.record.plan


def test_an_operator_that_declines_has_no_plan():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert preview(model, "narrow", "0", example_inputs=X, criterion="taylor") is None
    assert preview(model, "narrow", "5", example_inputs=X) is None
    assert preview(model, "narrow", "0", example_inputs=X, criterion="taylor", loss=lambda out: out.sum()) is not None
