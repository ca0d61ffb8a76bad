"""Mutated models are copied, compiled and exported like any others, and nobody is served what the model was before."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import evolve
from evolve.operators import operators
from evolve.testing import ZOO

# Operator, site and options: on a CNN (`chain`) and on a model of tokens (`grouped_queries`) or of patches.
CHANGES = {
    "residual, same shape": ("chain", "residual", "features.1", {}),
    "residual, projection": ("chain", "residual", "features", {}),
    "residual, part of a chain": ("chain", "residual", "features.1:3", {}),
    "residual, linear": ("grouped_queries", "residual", "gate", {}),
    "deepen, convolutions": ("chain", "deepen", "features.0", {}),
    "deepen, inverted": ("chain", "deepen", "features.0", {"block": "inverted"}),
    "deepen, mlp": ("grouped_queries", "deepen", "o", {}),
    "deepen, transformer": ("fused_attention", "deepen", "norm1", {"block": "transformer"}),
    "widen": ("chain", "widen", "*", {}),
    "widen, tokens": ("grouped_queries", "widen", "*", {}),
    "narrow": ("chain", "narrow", "*", {"factor": 0.5}),
    "narrow, heads": ("fused_attention", "narrow", "*", {"factor": 0.5}),
    "kernel": ("chain", "kernel", "features.0", {}),
    "swap, activation": ("chain", "swap", "features.2", {}),
    "swap, norm": ("fused_attention", "swap", "norm1", {}),
    "attention, squeeze-excite": ("chain", "attention", "features", {}),
    "attention, self": ("chain", "attention", "features", {"kind": "self"}),
    "branch, convolution": ("chain", "branch", "features.4", {}),
    "branch, mlp": ("grouped_queries", "branch", "gate", {}),
    "dropout": ("chain", "dropout", "features", {}),
    "shrink_perturb": ("chain", "shrink_perturb", "*", {}),
    "stack": ("staged", "stack", "*", {}),
    "remove": ("chain", "remove", "features.1", {"preserves": "no"}),
    "remove, of several": ("staged", "remove", "3", {"preserves": "no"}),
}


def built(name):
    torch.manual_seed(0)
    subject = ZOO[name]
    return subject.build().eval(), subject.inputs()


def changed(model, inputs, *changes):
    """Mutates, and lets what came in do something, as training would."""
    for operator, site, options in changes:
        result = evolve.mutate(model, operator, site=site, example_inputs=inputs, seed=0, **options)
        assert result.success, result.message
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return model


def close(one, other):
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=CHANGES, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def change(request):
    name, *how = CHANGES[request.param]
    return *built(name), how


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, backend="eager", fullgraph=True)
    torch._dynamo.reset()


def test_every_operator_is_tried():
    built_in = {name for name in operators.names() if operators.get(name).__module__.startswith("evolve.")}
    assert {operator for _, operator, _, _ in CHANGES.values()} == built_in


@torch.no_grad()
def test_copies_and_pickles_compute_the_same(change):
    model, inputs, how = change
    before = model(inputs)
    expected = changed(model, inputs, how)(inputs)
    assert not close(expected, before)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for twin in twins:
        assert torch.equal(twin(inputs), expected)
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        assert not close(twin(inputs), expected)
    assert torch.equal(model(inputs), expected)


@torch.no_grad()
def test_what_was_compiled_before_runs_what_is_there_now(change, compiled):
    model, inputs, how = change
    runner = compiled(model)
    before = runner(inputs)
    with evolve.transaction(model) as step:
        changed(model, inputs, how)
        after = runner(inputs)
        assert close(after, model(inputs))
        assert not close(after, before)
        step.rollback()
    assert torch.equal(runner(inputs), before)


def test_an_exported_program_computes_the_same_for_any_batch(change):
    model, inputs, how = change
    changed(model, inputs, how)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(model, (inputs,), dynamic_shapes=(batch,)).module()
    more = torch.cat([inputs, inputs.flip(0), inputs])
    with torch.no_grad():
        assert close(program(more), model(more))


@torch.no_grad()
def test_a_model_that_was_changed_often_agrees_in_onnx():
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, inputs = built("chain")
    changes = [
        ("residual", "features", {}),
        ("deepen", "features.0", {}),
        ("branch", "features.4", {}),
        ("attention", "features", {}),
        ("attention", "features.0", {"kind": "self"}),
        ("swap", "features.2", {}),
        ("kernel", "features.0", {}),
        ("dropout", "features.0", {}),
        ("widen", "*", {}),
        ("narrow", "*", {"factor": 0.75}),
    ]
    changed(model, inputs, *changes)
    stream = io.BytesIO()
    torch.onnx.export(model, (inputs,), dynamo=True, verbose=False).save(stream)
    session = runtime.InferenceSession(stream.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(inputs), rtol=1e-4, atol=1e-4)


# The fused forward of PyTorch's transformer encoders, which calls none of its parts.

INSIDE = [
    ("swap", "layers.1.norm1", {}),
    ("residual", "layers.1.linear2", {}),
    ("deepen", "layers.1.norm2", {}),
    ("branch", "layers.1.linear1", {}),
    ("remove", "layers.1.norm2", {"preserves": "no"}),
    ("remove", "layers.1.linear2", {"preserves": "no"}),
]


def encoder(features):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(features, 2, features, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.parametrize(("operator", "site", "options"), INSIDE)
@pytest.mark.parametrize("copied", [False, True])
def test_a_change_inside_an_encoder_is_there_without_gradients_too(operator, site, options, copied):
    model = encoder(8)
    tokens = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    changed(model, tokens, (operator, site, options))
    model = pickle.loads(pickle.dumps(model)) if copied else model
    with_gradients = model(tokens, src_key_padding_mask=padding)[~padding]
    with torch.no_grad():
        assert close(model(tokens, src_key_padding_mask=padding)[~padding], with_gradients)
        assert close(model(tokens), model(tokens.requires_grad_()))


def test_an_encoder_that_was_not_changed_inside_stays_fused():
    model = nn.Sequential(encoder(8), nn.Linear(8, 8)).eval()
    tokens = torch.randn(3, 5, 8)
    for site in ("0.layers.1", "0", "1"):
        assert evolve.mutate(model, "residual", site=site, example_inputs=tokens)
    assert [layer.activation_relu_or_gelu for layer in model[0].layers] == [1, 1]
    assert evolve.mutate(model, "residual", site="0.layers.1.linear1", example_inputs=tokens)
    assert [layer.activation_relu_or_gelu for layer in model[0].layers] == [1, 0]


INSERTED = [("residual", "features"), ("deepen", "features.0")]
RESIZED = [("widen", "features.0"), ("kernel", "features.0"), ("narrow", "features.0")]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("operator", "site"), [*INSERTED, *RESIZED])
def test_what_docs_say_of_tracing_and_scripting(operator, site):
    model, inputs = built("chain")
    expected = changed(model, inputs, (operator, site, {}))(inputs)
    assert close(torch.jit.trace(model, inputs)(inputs), expected)
    assert close(torch.export.export(model, (inputs,)).module()(inputs), expected)
    resized = (operator, site) in RESIZED
    assert (b"evolve.blocks" not in pickle.dumps(model)) == resized
    if resized:
        assert close(torch.jit.script(model)(inputs), expected)
        assert close(torch.fx.symbolic_trace(model)(inputs), expected)
        return
    with pytest.raises((RuntimeError, ValueError)):
        torch.jit.script(model)
    if operator == "residual":
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(model)
