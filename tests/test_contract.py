"""Every registered operator keeps its contract on every model of the zoo."""

import pytest
import torch
from torch import nn

import evolve
from evolve.operators import operators
from evolve.testing import ZOO, check_operator

# Further options under which an operator is a different one.
VARIANTS = {"residual": [{"init": "random"}, {"init": "identity"}], "deepen": [{"ratio": 2.0, "kernel": 1}]}


@pytest.mark.parametrize("name", operators.names())
def test_every_operator_keeps_its_contract(name):
    assert check_operator(name) >= 3


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, variants in VARIANTS.items() for o in variants])
def test_variants_keep_the_contract(name, options):
    assert check_operator(name, **options) >= 3


@pytest.fixture
def plugin():
    names = []

    def register(name, function, preserves="exact"):
        names.append(name)
        return evolve.operator(name, preserves=preserves)(function)

    yield register
    for name in names:
        operators.unregister(name)


def test_a_function_operator_passes_and_a_lying_one_does_not(plugin):
    def scale(model, site, context):
        parent, _, leaf = site.rpartition(".")
        old = getattr(model.get_submodule(parent), leaf)
        if not isinstance(old, nn.Linear):
            return False, "needs a Linear"
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        new.load_state_dict(old.state_dict())
        setattr(model.get_submodule(parent), leaf, new)
        return True, "replaced the layer by a copy"

    def shift(model, site, context):
        for parameter in model.get_submodule(site).parameters():
            parameter.data += 1
        return True, "shifted"

    plugin("copy_linear", scale)
    plugin("shift", shift)
    zoo = {"chain": ZOO["chain"]}
    assert check_operator("copy_linear", zoo) == 1
    with pytest.raises(AssertionError, match="applied nowhere"):
        check_operator("shift", zoo)
    model = ZOO["chain"].build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = evolve.mutate(model, "shift", site="features.0")
    assert result.status == "rejected"
    assert "declares to preserve" in result.message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
