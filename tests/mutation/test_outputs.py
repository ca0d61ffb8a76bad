"""Whatever a forward returns, what is said of it was measured."""

import collections
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evolve
from evolve.mutation.compare import difference, structure_faults
from evolve.operators import operators
from evolve.structure.outputs import Holder, copied_parts, output_tensors, parts

X = torch.linspace(-1, 1, 24).reshape(4, 6)
Pair = collections.namedtuple("Pair", ["logits", "hidden"])


@dataclasses.dataclass
class Record:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    logits: torch.Tensor


class Plain:
    def __init__(self, logits):
        self.logits = logits


class Slots:
    __slots__ = ("__private", "logits")

    def __init__(self, logits):
        self.logits, self.__private = logits, logits * 0


class ModelOutput(collections.OrderedDict):
    """Fields as keys and as attributes, as in Hugging Face's class of this name."""

    def __init__(self, **fields):
        super().__init__({key: value for key, value in fields.items() if value is not None})
        self.__dict__.update(fields)


class Derived(collections.UserDict):
    pass


def circle(logits):
    held = [logits]
    held.append(held)
    return held


# How a model returns its logits, and how to find them again from outside.
KINDS = {
    "tensor": (lambda y: y, lambda o: o),
    "tuple": (lambda y: (y / 2, y), lambda o: o[1]),
    "namedtuple": (lambda y: Pair(y, None), lambda o: o.logits),
    "dict": (lambda y: {"logits": y, 3: "text"}, lambda o: o["logits"]),
    "user dict": (lambda y: Derived(logits=y), lambda o: o["logits"]),
    "model output": (lambda y: ModelOutput(loss=None, logits=y), lambda o: o.logits),
    "dataclass": (Record, lambda o: o.logits),
    "dataclass with slots": (Slotted, lambda o: o.logits),
    "plain object": (Plain, lambda o: o.logits),
    "object with slots": (Slots, lambda o: o.logits),
    "namespace": (lambda y: SimpleNamespace(deep=Plain({"y": y})), lambda o: o.deep.logits["y"]),
    "nested list": (lambda y: [[y[:1]], [[y[1:], 7]]], lambda o: torch.cat([o[0][0], o[1][0][0]])),
    "deque": (lambda y: collections.deque([y]), lambda o: o[0]),
    "cycle": (circle, lambda o: o[0]),
    "float": (lambda y: y.sum().item(), lambda o: torch.tensor(o, dtype=torch.float64)),
    "complex number": (
        lambda y: complex(y[0, 0].item(), y[0, 1].item()),
        lambda o: torch.tensor(o, dtype=torch.complex128),
    ),
    "list of floats": (lambda y: y.tolist(), torch.tensor),
    "numpy": (lambda y: y.detach().numpy(), torch.from_numpy),
    "numpy scalar": (lambda y: y.detach().numpy()[0, 0], lambda o: torch.tensor(float(o))),
    "complex": (lambda y: torch.complex(y, y * 2), lambda o: o),
    "sparse": (lambda y: y.to_sparse(), lambda o: o.to_dense()),
    "csr": (lambda y: y.to_sparse_csr(), lambda o: o.to_dense()),
    "nested tensor": (lambda y: torch.nested.as_nested_tensor([y[0] / 9, y.flatten()]), lambda o: o.unbind()[1]),
    "half": (lambda y: y.to(torch.bfloat16), lambda o: o),
    "float8": (lambda y: y.to(torch.float8_e5m2), lambda o: o.float()),
    "integers": (lambda y: (y * 100).long(), lambda o: o),
    "partly infinite": (lambda y: torch.where(y > y.median(), y, -math.inf), lambda o: o),
    "buffer of its own": (lambda y: y, lambda o: o),
}
NOTHING = {
    "none": (lambda y: None, "returns None"),
    "empty": (lambda y: y[:0], "are empty"),
    "nan": (lambda y: y * math.nan, "finite"),
    "infinite": (lambda y: torch.full_like(y, -math.inf), "finite"),
    "text": (lambda y: "done", "no number"),
    "generator": (lambda y: (row for row in y), "no number"),
    "empty list": (lambda y: [], "no number"),
    "nan float": (lambda y: math.nan, "finite"),
}


class Net(nn.Module):
    """One linear layer; returns what a function makes of its output."""

    def __init__(self, wrap, *, keeps=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.wrap = nn.Linear(6, 3), wrap
        self.register_buffer("kept", torch.zeros(4, 3) if keeps else None)
        self.results = []

    def forward(self, x):
        y = self.layer(x)
        if self.kept is not None:  # returns a tensor that is put back after each run
            with torch.no_grad():
                return self.kept.copy_(y)
        return self.wrap(y)


@pytest.fixture
def scale():
    """An operator that makes a layer's weights half as large again, whatever it declares."""
    names = []

    def register(preserves):
        def scaled(model, site, context):
            with torch.no_grad():
                model.get_submodule(site).weight.mul_(1.5)
            return True, "Scaled."

        names.append(f"scale_{preserves}")
        evolve.operator(names[-1], preserves=preserves)(scaled)
        return names[-1]

    yield register
    for name in names:
        operators.unregister(name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_delta_of_any_output_is_the_one_that_is_computed_outside(scale, kind):
    wrap, found = KINDS[kind]
    model = Net(wrap, keeps=kind == "buffer of its own")
    before = found(model(X))
    before = before.clone() if isinstance(before, torch.Tensor) else before
    result = evolve.mutate(model, scale("no"), site="layer", example_inputs=X)
    assert result.success, result.message
    after = found(model(X))
    kind_of = torch.complex128 if before.is_complex() else torch.float64
    values = (before.to(kind_of) - after.to(kind_of)).abs()
    expected = float(torch.where(before == after, 0.0, values).max())
    assert expected > 0
    assert result.record.max_abs_diff == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("preserves", ["exact", "approximate"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lie_about_any_output_is_found_out(scale, kind, preserves):
    wrap, _ = KINDS[kind]
    model = Net(wrap, keeps=kind == "buffer of its own")
    weight = model.layer.weight.detach().clone()
    result = evolve.mutate(model, scale(preserves), site="layer", example_inputs=X)
    assert result.status == "rejected"
    assert "changed" in result.message
    assert torch.equal(model.layer.weight, weight)


@pytest.mark.parametrize("preserves", ["exact", "approximate"])
@pytest.mark.parametrize("kind", NOTHING)
def test_what_cannot_be_compared_is_not_called_equal(scale, kind, preserves):
    wrap, why = NOTHING[kind]
    result = evolve.mutate(Net(wrap), scale(preserves), site="layer", example_inputs=X)
    assert result.status == "rejected"
    assert result.record.max_abs_diff is None
    assert "not measured" in result.message
    assert why in result.message


@pytest.mark.parametrize("kind", NOTHING)
def test_what_promises_nothing_goes_on_unmeasured(scale, kind):
    wrap, why = NOTHING[kind]
    result = evolve.mutate(Net(wrap), scale("no"), site="layer", example_inputs=X)
    assert result.success, result.message
    assert result.record.max_abs_diff is None
    assert "Not measured" in result.message
    assert why in result.message


def test_an_empty_probe_batch_measures_nothing(scale):
    result = evolve.mutate(Net(lambda y: y), scale("exact"), site="layer", example_inputs=X[:0])
    assert result.status == "rejected"
    assert "not measured: the outputs are empty" in result.message


@pytest.mark.parametrize(
    "kind", ["dataclass", "model output", "plain object", "namespace", "complex", "sparse", "cycle"]
)
def test_gradients_are_found_in_any_output(kind):
    result = evolve.mutate(Net(KINDS[kind][0]), "residual", site="layer", example_inputs=X)
    assert result.success, result.message
    assert result.record.max_abs_diff == 0.0


@pytest.mark.parametrize("kind", ["float", "numpy", "list of floats"])
def test_outputs_without_gradients_say_so(kind):
    result = evolve.mutate(Net(KINDS[kind][0]), "residual", site="layer", example_inputs=X)
    assert result.success, result.message
    assert "Gradients were not checked: no output depends on a trainable parameter" in result.message


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ({"a": X, "b": X}, {"a": X}, "output['b'] is gone"),
        ({"a": X}, {"a": X, "b": None}, "output['b'] is new"),
        ([X], (X,), "the output changed from a list to a tuple"),
        (Record(X), Plain(X), "the output changed from a Record to a Plain"),
        (Record(X), Record(X, X), "output.hidden changed from None to (4, 6) torch.float32 on cpu"),
        (X, X[:2], "the output changed from (4, 6) torch.float32 on cpu to (2, 6) torch.float32 on cpu"),
        (X, X.double(), "the output changed from (4, 6) torch.float32 on cpu to (4, 6) torch.float64 on cpu"),
        ([1], [1.0], "output[0] changed from int to float"),
        ({"label": "cat"}, {"label": "dog"}, "output['label'] changed from 'cat' to 'dog'"),
        (X.to_sparse(), X, "the output changed from (4, 6) torch.float32 torch.sparse_coo on cpu"),
    ],
)
def test_a_changed_structure_is_a_fault(before, after, fault):
    assert any(found.startswith(fault) for found in structure_faults(parts(before), parts(after)))
    assert structure_faults(parts(before), parts(before)) == []


@pytest.mark.parametrize(
    ("one", "other", "absolute"),
    [
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
        (math.inf, -math.inf, math.inf),
        (math.inf, math.nan, math.inf),
        (math.inf, math.inf, None),
        (math.nan, math.nan, None),
        (2.0, 2.5, 0.5),
    ],
)
def test_numbers_that_are_not_finite(one, other, absolute):
    assert difference(parts([one]), parts([other])).absolute == absolute
    tensors = parts(torch.full((2,), one)), parts(torch.full((2,), other))
    assert difference(*tensors).absolute == absolute


def test_each_output_has_a_scale_of_its_own():
    """A large mask, or the numbers of tokens, must not make a difference look small."""
    before = {"mask": torch.full((3,), -1e9), "ids": torch.tensor([50_000]), "logits": torch.ones(3)}
    found = difference(parts(before), parts({**before, "logits": torch.ones(3) * 1.1}))
    assert found.relative == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_round_as_their_parts_do(dtype):
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)

        def forward(self, x):
            return self.last(self.first(x.to(dtype)) * 2)

    single = dtype == torch.complex64
    x = X if single else X.double()
    result = evolve.mutate(Turns(), "widen", site="first", example_inputs=x, seed=0)
    assert result.success, result.message
    bound = difference(copied_parts(Turns()(x)), copied_parts(Turns()(x))).leaves[0].allowed("exact")
    assert bound == (1e-5 if single else 1e-10)


def test_what_leads_out_of_the_outputs_is_not_entered():
    model = nn.Linear(2, 2)
    found = parts(SimpleNamespace(model=model, function=math.sin, y=X))
    assert [tensor is X for tensor in output_tensors(SimpleNamespace(model=model, y=X))] == [True]
    assert isinstance(found[0].value, Holder)
    assert [part.path for part in found] == ["", ".model", ".function", ".y"]


def test_the_real_model_output_of_hugging_face():
    generic = pytest.importorskip("transformers.utils.generic")

    @dataclasses.dataclass
    class Output(generic.ModelOutput):
        loss: torch.Tensor | None = None
        logits: torch.Tensor | None = None

    assert [part.path for part in parts(Output(logits=X))] == ["", "['logits']", ".loss"]


class Tagged(torch.Tensor):
    """A tensor that carries another."""


class Key:
    def __init__(self, logits):
        self.logits = logits


def tagged(logits, carrier):
    carrier.logits = logits
    return carrier


HIDDEN = {
    "a key": lambda y: {y: 1},
    "in a key": lambda y: {(1, y): 1},
    "an object as a key": lambda y: {Key(y): 1},
    "attribute of a tensor": lambda y: tagged(y, torch.ones(2)),
    "attribute of a parameter": lambda y: tagged(y, nn.Parameter(torch.ones(2))),
    "attribute of a subclass": lambda y: tagged([y], torch.ones(2).as_subclass(Tagged)),
    "attribute of an attribute": lambda y: [tagged({"y": tagged(y, torch.ones(2))}, torch.ones(2))],
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_tensor_in_an_unusual_place_is_compared(scale, kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return HIDDEN[kind](self.layer(x))

    result = evolve.mutate(Net(), scale("exact"), site="layer", example_inputs=X)
    assert result.status == "rejected"
    assert "logits" in result.message or "key" in result.message


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_difference_in_an_unusual_place_is_measured(kind):
    before, after = (copied_parts(HIDDEN[kind](y)) for y in (X, X + 0.5))
    assert not structure_faults(before, after)
    assert difference(before, after).absolute == pytest.approx(0.5, abs=1e-6)
