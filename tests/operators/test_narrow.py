"""`narrow`: what it takes for copies, and that it undoes `widen`."""

import torch
from torch import nn

from evolve import mutate


def test_copies_are_found_among_thousands_of_units():
    """So many that some that differ look alike at first sight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3000), nn.ReLU(), nn.Linear(3000, 2)).double()
    x = torch.randn(4, 2, dtype=torch.double)
    expected = model(x)
    assert mutate(model, "widen", site="0", add=500, example_inputs=x, seed=0)
    result = mutate(model, "narrow", site="0", criterion="redundant", example_inputs=x, seed=0)
    assert result.success, result.message
    assert model[0].out_features == 3000
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
