"""Random sequences of mutations on the zoo: never an invalid model, never a stale optimizer, never a trace."""

import copy
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import evolve
from evolve.mutation.api import create_operator
from evolve.mutation.compare import difference
from evolve.operators import operators
from evolve.structure.inputs import as_inputs
from evolve.structure.outputs import copied_parts, output_tensors
from evolve.testing import ZOO, variants
from evolve.testing.snapshot import ModelSnapshot, check_optimizer

SEQUENCES = int(os.environ.get("EVOLVE_SEQUENCES", "1000"))  # fewer while you work on something
SETTINGS = settings(
    max_examples=SEQUENCES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LIMITS = evolve.Limits(params=6000)  # what would grow beyond is refused, and the sequence goes on

# Small steps: a sequence that doubles all widths eight times is a test of patience.
STEPS = {
    "widen": [{"add": 1}, {"factor": 1.25}, *({"add": 2, **v} for v in variants("widen"))],
    "narrow": [{"remove": 1}, *({"remove": 1, **v} for v in variants("narrow")), {"criterion": "redundant"}],
    "dropout": [{}, {"p": 0.0}, {"p": 0.5}],
}
CHOICES = {name: STEPS.get(name, [{}, *variants(name)]) for name in operators.names()}
EXACT = {
    name: exact
    for name, options in CHOICES.items()
    if (exact := [o for o in options if create_operator(name, o).preserves == "exact"])
}
SLOW = {
    "grown",
    "transformer",
    "fused_attention",
    "grouped_queries",
    "cross_attention",
    "depthwise",
    "layer_normed",
    "recurrent",
}
MODELS = [name for name in ZOO for _ in range(1 if name in SLOW else 4)]


@st.composite
def steps(draw, choices):
    """Draws operators with options and a number that picks the site."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(sorted(choices)))
        found.append(((name, draw(st.sampled_from(choices[name]))), draw(st.integers(0, 2**16))))
    return found


class Run:
    """A model in training, to which a sequence of mutations happens."""

    def __init__(self, name):
        torch.default_generator.manual_seed(0)
        self.model, self.example = ZOO[name].build(), ZOO[name].inputs()
        self.inputs = as_inputs(self.model, self.example)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-3)
        self.train()

    def parameters(self):
        """Those with a state in the optimizer."""
        return [(key, p) for key, p in self.model.named_parameters() if p in self.optimizer.state]

    def size(self, place):
        """The size of a group."""
        return evolve.analyse(self.model, self.example).group(place).size

    def outputs(self, training=False):
        twin = copy.deepcopy(self.model).train(training)
        with torch.no_grad():
            return copied_parts(self.inputs.run(twin))

    def train(self):
        """One step in each mode."""
        for training in (False, True):
            self.model.train(training)
            self.optimizer.zero_grad()
            outputs = output_tensors(self.model(*self.inputs.args, **self.inputs.kwargs))
            total(outputs).backward()
            self.optimizer.step()
            assert all(bool(torch.isfinite(t).all()) for t in outputs)
        assert all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def site(self, operator, number):
        """A group or all of them, for those that change groups; any module of a fitting kind for the others."""
        if operator in {"widen", "narrow"}:
            groups = evolve.analyse(self.model, self.example).changeable
            names = [*(group.name for group in groups), "*"]
        else:
            kinds = {
                "swap": (nn.ReLU, nn.SiLU, nn.GELU, nn.LayerNorm, nn.BatchNorm2d),
                "kernel": (nn.Conv1d, nn.Conv2d),
            }
            kind = kinds.get(operator, nn.Module)
            names = [name for name, module in self.model.named_modules() if isinstance(module, kind)]
            names = names[1:] or [""]  # the root only where there is nothing else
        return names[number % len(names)]

    def mutate(self, choice, number):
        operator, options = choice
        place = self.site(operator, number)
        before = ModelSnapshot(self.model, self.optimizer)
        result = evolve.mutate(
            self.model,
            operator,
            site=place,
            optimizer=self.optimizer,
            example_inputs=self.example,
            loss=total,
            limits=LIMITS,
            seed=number,
            **options,
        )
        where = f"{operator} {options} at '{place}'"
        assert result.status != "failed", f"{where}: {result.message}"
        if result:
            check_optimizer(self.model, self.optimizer, where)
        else:
            before.check_same(self.model, self.optimizer, f"{where} left a trace: {result.message}")
        return result


def total(outputs):
    return sum((t.float() * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in output_tensors(outputs))


@SETTINGS
@given(
    st.sampled_from(MODELS),
    st.booleans().flatmap(lambda exact: st.tuples(st.just(exact), steps(EXACT if exact else CHOICES))),
)
def test_sequences(name, sequence):
    check_sequence(name, *sequence)


def assert_same(before, after, bound, place=""):
    """Equal to a bound of single precision; where a model computes in half precision, to its rounding."""
    for leaf in difference(before, after).leaves:
        assert leaf.relative <= (bound if leaf.rounds <= 1e-5 else leaf.rounds), f"{place} {leaf}"


def check_sequence(name, exact, chosen):
    run = Run(name)
    before, records = run.outputs(), []
    for choice, number in chosen:
        result = run.mutate(choice, number)
        records.append(result.record)
        if result and not exact:
            run.train()
    if exact:
        assert_same(before, run.outputs(), 1e-4)
        run.train()
    torch.default_generator.manual_seed(0)
    rebuilt = ZOO[name].build()
    evolve.replay(rebuilt, records)
    rebuilt.load_state_dict(run.model.state_dict())


@pytest.mark.parametrize("init", ["split", "twins", "zero_out"])
@pytest.mark.parametrize("name", ZOO)
def test_narrow_takes_out_what_widen_put_in(name, init):
    run = Run(name)
    for place in evolve.sites(run.model, "widen", example_inputs=run.example, init=init):
        before, shapes = run.outputs(), {key: tuple(p.shape) for key, p in run.model.named_parameters()}
        averages = {key: run.optimizer.state[p]["exp_avg"].clone() for key, p in run.parameters()}
        size, there = run.size(place), {"site": place, "optimizer": run.optimizer, "example_inputs": run.example}
        if not evolve.mutate(run.model, "widen", add=2, init=init, seed=3, **there):
            continue  # the forward keeps a size that cannot follow
        added = run.size(place) - size
        how = {"criterion": "redundant", "remove": added}
        if init == "twins":  # they cancel out: neither alone is redundant
            how = {"criterion": "indices", "indices": list(range(size, size + added))}
        result = evolve.mutate(run.model, "narrow", **how, **there)
        assert result, f"{place}: {result.message}"
        assert {key: tuple(p.shape) for key, p in run.model.named_parameters()} == shapes
        assert_same(before, run.outputs(), 1e-5, place)
        for key, parameter in run.parameters():
            again = run.optimizer.state[parameter]["exp_avg"]
            half = again.dtype in (torch.bfloat16, torch.float16)  # whose rounding is a few thousandths
            close = {"rtol": 2e-2, "atol": 1e-3} if half else {"rtol": 1e-4, "atol": 1e-7}
            assert torch.allclose(again, averages[key], **close), f"{place}: the average of {key}"
