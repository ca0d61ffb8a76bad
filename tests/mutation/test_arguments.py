"""What `mutate` and `sites` say of example inputs that are none, and of an operator that returns no Change."""

import numpy as np
import pytest
import torch
from torch import nn

import evolve
from evolve.errors import NotApplicable
from evolve.operators import MutationOperator, operators


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "example_inputs is 5, of type int"),
        (True, "example_inputs is True, of type bool"),
        ("abc", "example_inputs is 'abc', of type str"),
        ([], "example_inputs is an empty list"),
        ({}, "example_inputs is an empty dict"),
        (np.zeros((2, 4)), "example_inputs is a NumPy ndarray; pass a tensor"),
    ],
)
def test_what_is_no_batch_is_named(given, said):
    model = nn.Linear(4, 2)
    result = evolve.mutate(model, "widen", example_inputs=given)
    assert result.status == "not_applicable"
    assert said in result.message
    assert "before any change" not in result.message
    with pytest.raises(NotApplicable, match="pass a tensor"):
        evolve.sites(model, "widen", example_inputs=given)


def test_arguments_without_a_tensor_are_said_to_be_so():
    result = evolve.mutate(nn.Linear(4, 2), "widen", example_inputs=[5])
    assert "The model fails on example inputs without a tensor before any change" in result.message


def test_a_forward_without_arguments_takes_none():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.layers = nn.Parameter(torch.ones(4)), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))

        def forward(self):
            return self.layers(self.start)

    model = Constant()
    result = evolve.mutate(model, "widen", site="layers.0", example_inputs=())
    assert result.success, result.message
    assert model.layers[0].out_features == 16


@pytest.mark.parametrize("returned", [None, ("done", 0), "done"])
def test_an_operator_that_returns_no_change_is_told_what_to_return(returned):
    @operators.register("returns_no_change")
    class ReturnsNoChange(MutationOperator):
        def apply(self, model, site, plan):
            return returned

    try:
        result = evolve.mutate(nn.Linear(4, 2), "returns_no_change", site="", example_inputs=torch.ones(1, 4))
    finally:
        operators.unregister("returns_no_change")
    assert result.status == "rejected"
    assert f"`apply` of 'returns_no_change' returned a {type(returned).__name__}" in result.message
    assert "has to return an evolve Change" in result.message
