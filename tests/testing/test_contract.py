"""Every registered operator keeps its contract on every model of the zoo, under every option that makes it another."""

from collections import Counter
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest
import torch
from torch import nn

import evolve
from evolve.operators import operators
from evolve.testing import ZOO, Subject, check_on, check_operator, variants

# Options under which an operator is a different one, beside those whose choices have names (`variants` finds them).
VARIANTS = {
    "deepen": [{"ratio": 2.0, "kernel": 1}],
    "kernel": [{"add": 4}],
    "dropout": [{"p": 0.5}],
    "branch": [{"kernel": 1, "ratio": 2.0}],
    "shrink_perturb": [{"keep": "auto"}, {"keep": 0.0}],
    "widen": [{"add": 3}, {"factor": 1.5, "multiple_of": 8}, {"add": 1, "init": "twins"}],
    "narrow": [
        {"criterion": "indices", "indices": [0]},
        {"remove": 1, "multiple_of": 2},
        {"target": {"flops": 0.8}},
        {"target": {"params": 0.8}, "ranking": "isomorphic"},
    ],
}
# Where these apply, the zoo has nothing that tells: each has a test of its own in test_operators.py.
ELSEWHERE = {
    "swap[to=relu6]": "on activations below 6 it is ReLU, and the gate gets no gradient",
    "remove[preserves=exact]": "no block is still the identity after a step of training",
}
CASES = {
    f"{name}{options or ''}".translate(str.maketrans("{:}", "[=]", "' ")): (name, options)
    for name in operators.names()
    for options in ({}, *variants(name), *VARIANTS.get(name, []))
}
APPLIED = Counter()


@pytest.mark.parametrize("subject", ZOO)
@pytest.mark.parametrize("case", [case for case in CASES if case not in ELSEWHERE])
def test_contract(case, subject):
    name, options = CASES[case]
    APPLIED[case] += check_on(name, subject, ZOO[subject], most_sites=1 if options else 3, **options)
    APPLIED[case, "models"] += 1


@pytest.mark.parametrize("case", [case for case in CASES if case not in ELSEWHERE])
def test_it_applied_somewhere(case):
    if APPLIED[case, "models"] < len(ZOO):
        pytest.skip("not all models were tried")
    assert APPLIED[case] >= (1 if CASES[case][1] else 3)


@pytest.mark.parametrize("name", operators.names())
def test_every_choice_of_an_operator_is_tried(name):
    for key, field in operators.get(name).Options.model_fields.items():
        if get_origin(field.annotation) is Literal:
            tried = {options.get(key, field.default) for operator, options in CASES.values() if operator == name}
            assert tried == set(get_args(field.annotation)), f"give '{name}' a variant with each choice of '{key}'"


@pytest.mark.parametrize("subject", ZOO)
@pytest.mark.parametrize("name", ["widen", "narrow"])
def test_all_groups_at_once(name, subject):
    applied = check_on(name, subject, ZOO[subject], places=["*"])
    assert applied == (subject not in {"two_inputs", "control_flow"})  # which have no group that can change


@pytest.mark.parametrize("name", operators.names())
def test_in_eval_mode_and_float64(name):
    models = ("chain", "residual", "transformer", "gated", "normalised", "grown", "layered")
    zoo = {key: replace(ZOO[key], build=lambda key=key: ZOO[key].build().double().eval()) for key in models}
    assert check_operator(name, zoo, most_sites=1)


@pytest.fixture
def plugin():
    names = []

    def register(name, function, preserves="exact"):
        names.append(name)
        return evolve.operator(name, preserves=preserves)(function)

    yield register
    for name in names:
        operators.unregister(name)


CHAIN = {"chain": ZOO["chain"]}


def test_a_function_operator_passes_and_one_that_is_refused_everywhere_does_not(plugin):
    def scale(model, site, context):
        parent, _, leaf = site.rpartition(".")
        old = getattr(model.get_submodule(parent), leaf)
        if not isinstance(old, nn.Linear):
            return False, "needs a Linear"
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        new.weight, new.bias = old.weight, old.bias
        setattr(model.get_submodule(parent), leaf, new.train(old.training))
        return True, "replaced the layer by another with the same parameters"

    def shift(model, site, context):
        for parameter in model.get_submodule(site).parameters():
            parameter.data += 1
        return True, "shifted"

    plugin("copy_linear", scale)
    plugin("shift", shift)
    assert check_operator("copy_linear", CHAIN) == 1
    with pytest.raises(AssertionError, match="applied nowhere"):
        check_operator("shift", CHAIN)
    model = ZOO["chain"].build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = evolve.mutate(model, "shift", site="features.0")
    assert result.status == "rejected"
    assert "declares to preserve" in result.message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def _eval_mode(model, site, context):
    model.get_submodule(site).eval()


def _freezes(model, site, context):
    model.get_submodule(site).bias.requires_grad_(False)


def _replaces(model, site, context):
    module = model.get_submodule(site)
    module.weight = nn.Parameter(module.weight.detach().clone())


def _differs(model, site, context):
    model.get_submodule(site).register_buffer(f"mark{id(model)}", torch.zeros(1))


def _inert(model, site, context):
    module = model.get_submodule(site)
    module.register_parameter("spare", nn.Parameter(torch.zeros(3)))


def _casts(model, site, context):
    model.get_submodule(site).register_buffer("mark", torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (_eval_mode, "the mode of 'features.0' is not kept"),
        (_freezes, "stale|requires_grad of 'features.0.bias' changed"),
        (_replaces, "'features.0.weight' is another object"),
        (_differs, "replay builds another structure"),
        (_casts, "the new 'features.0.mark' has another dtype"),
        (_inert, "applied nowhere"),  # refused: no gradient reaches the new parameter
    ],
)
def test_the_contract_finds_what_is_broken(plugin, change, clause):
    def broken(model, site, context):
        if site != "features.0":
            return False, "not here"
        change(model, site, context)
        return True, "done"

    plugin("broken", broken)
    with pytest.raises(AssertionError, match=clause):
        check_operator("broken", CHAIN)


def _frozen():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)


@pytest.mark.parametrize(
    ("subject", "clause"),
    [
        (Subject(_frozen, lambda: torch.randn(5, 6)), "no output depends on a trainable parameter"),
        (Subject(lambda: nn.Linear(6, 8), lambda: torch.randn(5, 7)), "does not run on its inputs"),
        (nn.Linear(2, 2), "the zoo holds a Linear, not a Subject"),
    ],
)
def test_a_model_that_cannot_be_checked_is_named(subject, clause):
    with pytest.raises(AssertionError, match=f"^'widen' on mine: .*{clause}"):
        check_operator("widen", {"mine": subject})
