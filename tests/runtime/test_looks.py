"""A call that only looks leaves every random number generator where it was, whatever model and operators draw."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import evolve
from evolve.data import IterableBatches, LoaderBatches
from evolve.evolver.run_config import load_config
from evolve.loading import load
from evolve.mutation.limits import Limits
from evolve.operators import MutationOperator, operators
from evolve.report.inspect import inspect_model
from evolve.structure.latency import latency

X = torch.randn(4, 6)


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Draws(nn.Module):
    """Draws from all three generators in each forward pass, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x + 0 * sum(draw()))))


@pytest.fixture(scope="module")
def drawing_operator():
    @operators.register("draws")
    class Drawing(MutationOperator):
        def sites(self, model, probe):
            draw()
            return ["a"]

        def plan(self, model, site, probe):
            return {"drawn": draw()}

        def apply(self, model, site, plan):
            raise NotImplementedError

    yield "draws"
    operators.unregister("draws")


def states():
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def unmoved(look):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    before = states()
    look()
    assert states() == before
    draw()
    assert states() != before  # the comparison sees all three


@pytest.mark.parametrize("operator", operators.names())
@pytest.mark.parametrize("inputs", [X, None], ids=["example", "guessed"])
def test_sites(operator, inputs):
    model = Draws()
    unmoved(lambda: evolve.sites(model, operator, example_inputs=inputs))


def test_sites_of_an_operator_that_draws(drawing_operator):
    model = Draws()
    unmoved(lambda: evolve.sites(model, drawing_operator, example_inputs=X))


@pytest.mark.parametrize(
    "look",
    [
        lambda model: evolve.analyse(model, X),
        lambda model: inspect_model(model, "it"),
        lambda model: inspect_model(model, "it", measure=True),
        lambda model: latency(model, X, repetitions=1),
        lambda model: evolve.mutate(model, "widen", site="a", example_inputs=X),
        lambda model: evolve.mutate(model, "widen", site="nowhere", example_inputs=X),
        lambda model: evolve.mutate(model, "deepen", site="a", example_inputs=X, limits=Limits(params=1)),
    ],
)
def test_looks_at_a_model(look, drawing_operator):
    model = Draws()
    unmoved(lambda: look(model))


def test_looks_at_data():
    rows = [(torch.randn(6), i % 3) for i in range(8)]
    loader = torch.utils.data.DataLoader(rows, 4, shuffle=True)
    unmoved(lambda: LoaderBatches(rows, 4, shuffle=True).example(3))
    unmoved(lambda: IterableBatches(loader).example(3))


def test_loading_a_run(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: {name: mlp, options: {in_features: 64, hidden: [4], num_classes: 10}}\ndata: digits\n"
        f"training: {{epochs: 1, device: cpu}}\noutput: {{dir: {tmp_path / 'run'}}}\n"
    )
    evolve.Evolver.from_config(load_config(file)).run()
    unmoved(lambda: load(tmp_path / "run"))
    unmoved(lambda: load_config(file))
