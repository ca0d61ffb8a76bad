"""Care for what is new: its learning rate, its weight decay, a watch; what is done right after a mutation."""

import copy
import inspect
import logging

import pytest
import torch
from helpers.fingerprints import fingerprint
from helpers.operators import registered
from helpers.runs import MUTATION_STEPS, digests, make, stop_after
from torch import nn

import evolve
from evolve.care import CareConfig, NewParameters, recalibrate
from evolve.errors import EvolveError
from evolve.evolver.config import EvolutionConfig
from evolve.surgery.parts import ParametersBefore, new_parts
from evolve.training.events import MutationTried, StepMade

X, Y = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def widened(build=torch.optim.SGD, care=None, *, init="split", model=None, **options):
    """A net with two new hidden units, its optimizer, and what cares for them."""
    model = model or net()
    optimizer = build(model.parameters(), **{"lr": 0.1, **options})
    new_parameters = NewParameters(CareConfig.model_validate(care or {}), [optimizer])
    widen(model, optimizer, new_parameters, init)
    return model, optimizer, new_parameters


def widen(model, optimizer, new_parameters, init="split"):
    shapes = ParametersBefore(model).shapes
    result = evolve.mutate(
        model, "widen", site="0", add=2, init=init, optimizer=optimizer, example_inputs=X[:4], seed=1, strict=True
    )
    new_parameters.add(model, new_parts(model, shapes, result.cuts), result.cuts)


def step(model, optimizer, new_parameters=None):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    if new_parameters is not None:
        new_parameters.before_step(model)
    optimizer.step()
    if new_parameters is not None:
        new_parameters.after_step()


def moves(model, optimizer, new_parameters=None):
    """What a step adds to each parameter."""
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, new_parameters)
    return [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]


def masks():
    """Two units came behind the first four."""
    rows = torch.zeros(6, 6, dtype=torch.bool)
    rows[4:] = True
    return [rows, rows[:, 0], torch.tensor([False] * 4 + [True] * 2).expand(3, 6), torch.zeros(3, dtype=torch.bool)]


def test_what_is_new():
    for init in ("split", "zero_out"):
        model = net()
        shapes = ParametersBefore(model).shapes
        result = evolve.mutate(model, "widen", site="0", add=2, init=init, example_inputs=X[:4], strict=True)
        parts = new_parts(model, shapes, result.cuts)
        assert list(parts) == ["0.weight", "0.bias", "2.weight"]
        assert all(torch.equal(parts[name], mask) for name, mask in zip(parts, masks(), strict=False))
    assert list(new_parts(model, {}, ())) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    shapes = ParametersBefore(model).shapes
    result = evolve.mutate(model, "narrow", site="0", remove=1, example_inputs=X[:4], strict=True)
    assert new_parts(model, shapes, result.cuts) == {}
    shapes = ParametersBefore(model).shapes
    model[2].weight = nn.Parameter(torch.zeros(4, 5))  # of another shape, and nobody says how
    assert new_parts(model, shapes)["2.weight"].tolist() == [[False] * 5] * 3 + [[True] * 5]


OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in {"Optimizer", "SparseAdam", "LBFGS", "Muon"}  # for sparse gradients, for no new ones, for matrices
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_of_their_own(name):
    plain = moves(*widened(OPTIMIZERS[name])[:2])
    warmed = moves(*widened(OPTIMIZERS[name], {"rewarm": {"steps": 4, "start": 0.25}}))
    for one, other, new in zip(plain, warmed, masks(), strict=True):
        assert torch.equal(one[~new], other[~new])
        assert torch.allclose(0.25 * one[new], other[new], rtol=1e-4, atol=1e-8)
        assert bool(one[new].any()) == bool(new.any())


def test_it_rises_in_a_line_to_that_of_the_schedule():
    model, optimizer, new_parameters = widened(care={"rewarm": {"steps": 4, "start": 0.5}, "watch": 0})
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for number in range(6):
        twin = copy.deepcopy(model)
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(0.1 * 0.9**number)
        plain = moves(twin, torch.optim.SGD(twin.parameters(), lr=rate))
        cared = moves(model, optimizer, new_parameters)
        schedule.step()
        factor = [0.5, 0.625, 0.75, 0.875, 1, 1][number]
        assert torch.allclose(cared[0][4:], factor * plain[0][4:], rtol=1e-4, atol=1e-8)
        assert torch.equal(cared[0][:4], plain[0][:4])
    assert new_parameters.state_dict()["brought"] == []


def test_all_of_the_model_can_be_warmed_up():
    plain = moves(*widened()[:2])
    model, optimizer, new_parameters = widened(care={"rewarm": {"steps": 4, "start": 0.25, "scope": "all"}})
    for one, other in zip(plain, moves(model, optimizer, new_parameters), strict=True):
        assert torch.allclose(0.25 * one, other, rtol=1e-4, atol=1e-8)
    assert optimizer.param_groups[0]["lr"] == 0.1


DECAYING = [name for name, cls in OPTIMIZERS.items() if "weight_decay" in inspect.signature(cls).parameters]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", DECAYING)
def test_new_parts_do_not_decay_for_a_while(name, maximize):
    decayed, free, graced = (
        widened(OPTIMIZERS[name], care, weight_decay=decay, maximize=maximize)
        for decay, care in ((0.3, {}), (0.0, {}), (0.3, {"decay_grace": 1}))
    )
    found = zip(moves(*decayed), moves(*free), moves(*graced), masks(), strict=True)
    for with_decay, without, mixed, new in found:
        assert torch.allclose(mixed[~new], with_decay[~new], rtol=1e-5, atol=1e-8)
        assert torch.allclose(mixed[new], without[new], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(moves(*decayed)[0][4:], moves(*free)[0][4:], rtol=1e-2)
    model, optimizer, _ = graced  # the grace is over
    assert torch.equal(moves(copy_of := copy.deepcopy(model), _same(optimizer, copy_of))[0], moves(*graced)[0])


def _same(optimizer, model):
    other = type(optimizer)(model.parameters(), lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def test_an_unknown_optimizer_has_no_known_decay():
    class Mine(torch.optim.SGD):
        pass

    with pytest.raises(EvolveError, match=r"torch\.optim.*how Mine does"):
        NewParameters(CareConfig(decay_grace=3), [Mine(net().parameters(), lr=0.1)])


def test_older_parts_follow_and_none_is_scaled_twice():
    model, optimizer, new_parameters = widened(care={"rewarm": {"steps": 4, "start": 0.0}})
    step(model, optimizer, new_parameters)
    step(model, optimizer, new_parameters)
    widen(model, optimizer, new_parameters)
    twin = copy.deepcopy(model)
    plain = moves(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    cared = moves(model, optimizer, new_parameters)
    factors = torch.tensor([1, 1, 1, 1, 0.5, 0.5, 0, 0])
    assert torch.allclose(cared[1], factors * plain[1], rtol=1e-4, atol=1e-8)
    assert torch.allclose(cared[2], factors * plain[2], rtol=1e-4, atol=1e-8)


def test_a_watch_tells_which_new_units_get_no_gradient(caplog):
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.relu(self.hidden(x)))

    torch.manual_seed(0)
    model = Dead()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    new_parameters = NewParameters(CareConfig(watch=3), [optimizer])
    shapes = ParametersBefore(model).shapes
    result = evolve.mutate(model, "widen", site="hidden", add=3, optimizer=optimizer, example_inputs=X, strict=True)
    new_parameters.add(model, new_parts(model, shapes, result.cuts), result.cuts)
    with torch.no_grad():
        model.hidden.bias[5] = -100.0
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            step(model, optimizer, new_parameters)
        assert not caplog.messages
        step(model, optimizer, new_parameters)
        step(model, optimizer, new_parameters)
    assert [message.partition(". It does not")[0] for message in caplog.messages] == [
        "No gradient has come to what is new in the 3 steps since a mutation: "
        "1 of 3 new units of 'hidden.weight' (positions 5); "
        "1 of 3 new units of 'hidden.bias' (positions 5); "
        "1 of 3 new units of 'head.weight' (positions 5 of axis 1)"
    ]


def test_single_values_without_a_gradient_are_not_told(caplog):
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    new_parameters = NewParameters(CareConfig(watch=1), [optimizer])
    new_parameters.add(model, {"weight": torch.tensor([[False] * 3, [False] * 3, [True] * 3, [True] * 3])})
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    y = model(x)
    (y[0, 2] + y[1, 3]).backward()  # each new unit is reached through two of its three inputs
    new_parameters.before_step(model)
    new_parameters.after_step()
    assert not caplog.messages


def test_a_new_parameter_that_is_never_reached_is_named(caplog):
    model = net()
    new_parameters = NewParameters(CareConfig(watch=1), [torch.optim.SGD(model.parameters(), lr=0.1)])
    model.register_parameter("spare", nn.Parameter(torch.zeros(2)))
    new_parameters.add(model, {"spare": torch.ones(2, dtype=torch.bool)})
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), new_parameters)
    assert "in the 1 steps since a mutation: the new parameter 'spare'. It does not learn" in caplog.messages[0]


def test_batch_norm_is_taken_anew_and_nothing_else_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 4), nn.BatchNorm1d(4))
    model(X)
    model[4].eval()
    before, whole = model[4].running_mean.clone(), fingerprint(model)
    assert recalibrate(model, X.split(8)) == 1
    hidden = model[0](X)
    assert torch.allclose(model[1].running_mean, hidden.mean(0), atol=1e-6)
    within = torch.stack([part.var(0) for part in hidden.split(8)]).mean(0)
    assert torch.allclose(model[1].running_var, within, atol=1e-6)
    assert (model[1].momentum, int(model[1].num_batches_tracked)) == (0.1, 4)
    assert torch.equal(model[4].running_mean, before)
    model[1].reset_running_stats()
    fresh = fingerprint(model)
    recalibrate(model, [])
    assert fingerprint(model) == fresh != whole
    assert recalibrate(net(), X.split(8)) == 0


def evolution(**care):
    return EvolutionConfig.model_validate(
        {
            "schedule": {"name": "at", "options": {"steps": MUTATION_STEPS}},
            "operators": [{"name": "widen", "sites": ["features.0"], "options": {"factor": 1.5}}],
            "care": care,
        }
    )


def test_shrink_follows_each_growth_as_a_mutation_of_its_own(tmp_path):
    config = evolution(shrink={"keep": 0.5, "layers": {"head": 1.0}}, moments="reset", batchnorm=2)
    evolver = make(tmp_path / "run", evolution=config)
    assert stop_after(evolver, 4).run().applied == 0  # what is due waits for a run that goes on
    make_mutation = evolver.controller.mutate

    def made_and_stopped(*args):
        make_mutation(*args)
        evolver.stop()

    evolver.controller.mutate = made_and_stopped
    assert evolver.run().applied == 2
    evolver.controller.mutate = make_mutation
    grown, shrunk = evolver.lineage
    assert (grown.operator, shrunk.operator, shrunk.site) == ("widen", "shrink_perturb", "*")
    assert (shrunk.step, shrunk.reason, shrunk.preserves) == (4, "care.shrink after a growth", "no")
    assert shrunk.options["layers"] == {"head": 1.0}
    assert not evolver.state.optimizer.state
    conv = "features.0.weight"
    assert torch.equal(evolver.state.ema.shadow[conv], evolver.model.get_parameter(conv))
    assert not torch.equal(evolver.state.ema.shadow["head.2.weight"], evolver.model.get_parameter("head.2.weight"))
    assert int(evolver.model.features[1].num_batches_tracked) == 2
    evolver.run()
    assert [record.operator for record in evolver.lineage] == ["widen", "shrink_perturb"] * 3


def test_what_is_no_growth_is_not_shrunk(tmp_path):
    config = EvolutionConfig.model_validate(
        {
            "schedule": {"name": "at", "options": {"steps": [4]}},
            "operators": [{"name": "narrow", "sites": ["features.0"], "options": {"remove": 1}}],
            "care": {"shrink": {}, "moments": "reset"},
        }
    )
    evolver = make(tmp_path / "run", evolution=config)
    stop_after(evolver, 5).run()
    assert [record.operator for record in evolver.lineage] == ["narrow"]
    assert evolver.state.optimizer.state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    evolver = make(tmp_path_factory.mktemp("whole") / "run", evolution=evolution(**CARE))
    assert evolver.run().applied == 5  # once `auto` finds nothing to weigh
    return digests(evolver)


CARE = {
    "shrink": {"keep": "auto"},
    "rewarm": {"steps": 3, "start": 0.1},
    "decay_grace": 4,
    "batchnorm": 2,
    "watch": 5,
}


@pytest.mark.parametrize("stop", [3, 4, 5, 6, 8, 10, 14])
def test_care_resumes(whole, tmp_path, stop):
    stop_after(make(tmp_path / "run", evolution=evolution(**CARE)), stop).run()
    resumed = make(tmp_path / "run", evolution=evolution(**CARE)).restore()
    assert resumed.run().finished
    assert digests(resumed) == whole


def test_care_changes_what_is_trained(whole, tmp_path):
    for key in ("shrink", "rewarm", "decay_grace", "batchnorm"):
        care = {name: value for name, value in CARE.items() if name != key}
        options = {} if key != "decay_grace" else {"optimizer": _decaying()}
        one = make(tmp_path / f"{key}-one", evolution=evolution(**CARE), **options)
        other = make(tmp_path / f"{key}-other", evolution=evolution(**care), **options)
        one.run(), other.run()
        assert digests(one)["weights"] != digests(other)["weights"], key


def _decaying():
    return evolve.OptimizerConfig(name="SGD", options={"lr": 0.05, "weight_decay": 0.1})


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_are_cared_for_on_their_own_scale(clip):
    found = []
    for scaled in (False, True):
        training = evolve.TrainingConfig(epochs=2, device="cpu", grad_clip=clip)
        evolver = make(
            evolution=evolution(decay_grace=9, rewarm={"steps": 5}), training=training, optimizer=_decaying()
        )
        evolver.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
        evolver.run()
        found.append(dict(evolver.model.named_parameters()))
    assert all(torch.allclose(p, found[1][name], rtol=1e-4, atol=1e-6) for name, p in found[0].items())


def wrap_the_head(model, site, context):
    """Puts a low-rank detour beside the last layer, as an adapter does; the layer gets another name."""

    class Beside(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.down, self.up = inner, nn.Linear(inner.in_features, 2), nn.Linear(2, inner.out_features)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, x):
            return self.inner(x) + self.up(self.down(x))

    model.head[2] = Beside(model.head[2])
    return True, "Wrapped the head."


def test_a_layer_that_a_plugin_wraps_is_not_new(caplog):
    """Its average goes on, its decay and its learning rate are as before, and no watch takes it for a new part."""
    config = EvolutionConfig.model_validate(
        {
            "schedule": {"name": "at", "options": {"steps": [4]}},
            "operators": [{"name": "wrap_the_head", "sites": ["head"]}],
            "care": {"rewarm": {"steps": 50}, "watch": 3},
        }
    )
    evolver = make(evolution=config)
    ema = evolver.state.ema
    seen = {}

    def look(event):
        if isinstance(event, StepMade) and event.step == 4:
            seen["average"] = ema.shadow["head.2.weight"].clone()
        if isinstance(event, MutationTried):
            seen["after"] = ema.shadow["head.2.inner.weight"].clone()
            seen["young"] = [name for parts in evolver.controller.new_parameters._brought for name in parts.parts]

    evolver.events.callbacks.append(look)
    with caplog.at_level("WARNING"):
        evolver.run()
    assert evolver.lineage.records[0].success, evolver.lineage.records[0].message
    assert torch.equal(seen["average"], seen["after"])
    assert sorted(seen["young"]) == [f"head.2.{part}.{kind}" for part in ("down", "up") for kind in ("bias", "weight")]
    assert "inner" not in caplog.text


PLUGINS = {
    wrap_the_head: ("wrap_the_head", "exact"),
}


@pytest.fixture(autouse=True, scope="module")
def _plugins():
    yield from registered(PLUGINS)
