"""A mutation on probation: what the trend promises, what is taken back, and that a run can stop in between."""

import json
import math
import random

import pytest
import torch
from helpers.fingerprints import fingerprint
from helpers.runs import Net, digests, make, stop_after
from torch import nn

import evolve
from evolve import EvolutionConfig, LrScheduleConfig, OptimizerConfig, TrainingConfig
from evolve.errors import EvolveError
from evolve.evolver.extrapolation import MOST, extrapolate, standard_error
from evolve.evolver.loop import Score
from evolve.lineage import Lineage
from evolve.operators import operators
from evolve.training import evaluate
from evolve.training.events import MutationTried


def run_of(folder=None, **changes):
    """An Evolver whose validation loss changes little from step to step."""
    quiet = LrScheduleConfig(name="OneCycleLR", options={"max_lr": 0.02})
    ARMED.clear()
    return make(folder, **{"lr_schedule": quiet, "callbacks": [armed], **changes})


@pytest.fixture(autouse=True)
def plugins():
    """Mutations that harm: at once, by making the loss no number, and not at all."""

    @evolve.operator("harm")
    def harm(model, site, context):
        with torch.no_grad():
            model.head[2].weight.add_(torch.randn_like(model.head[2].weight), alpha=30)
        return True, "Harmed."

    @evolve.operator("break")
    def break_(model, site, context):
        """Everything is right until the model is trained on: only then does the gradient overflow."""
        model.head[2].register_module("later", _Overflow())
        model.head[2].register_forward_hook(lambda layer, inputs, output: layer.later(output))
        return True, "Broke."

    yield
    operators.unregister("harm")
    operators.unregister("break")


class _Overflow(nn.Module):
    """Passes on what comes, until `ARMED`: then it makes it infinite."""

    def forward(self, x):
        return x * math.inf if ARMED else x


ARMED = []


def armed(event):
    """Lets the model break as soon as a mutation is applied."""
    if isinstance(event, MutationTried):
        ARMED[:] = [True] if event.record.success else []


def evolution(operator, steps, at, **changes):
    return EvolutionConfig.model_validate(
        {
            "schedule": {"name": "at", "options": {"steps": at}} if at else None,
            "operators": [{"name": operator, "sites": ["features"]}],
            "probation": {"steps": steps},
            **changes,
        }
    )


def without_log(evolver):
    """All but the log, and the FLOPs and seconds that stay spent."""
    lines = [{k: v for k, v in line.items() if k not in ("seconds", "flops")} for line in evolver.history]
    return {key: value for key, value in digests(evolver).items() if key != "log"} | {"history": lines}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without any mutation."""
    evolver = run_of(tmp_path_factory.mktemp("plain") / "run", evolution=EvolutionConfig())
    evolver.run()
    return without_log(evolver)


@pytest.mark.parametrize(("at", "steps"), [(4, 1), (4, 5), (6, 6), (9, 3), (10, 8), (12, 100)])
def test_what_harms_is_taken_back_and_the_run_goes_on_as_if_it_had_not_been(plain, tmp_path, at, steps):
    evolver = run_of(tmp_path / "run", evolution=evolution("harm", steps, [at]))
    result = evolver.run()
    assert (result.finished, result.applied, result.refused) == (True, 0, 1)
    assert without_log(evolver) == plain
    (record,) = evolver.lineage
    assert (record.status, record.success, record.params_after) == ("rolled_back", False, record.params_before)
    assert (record.verdict.kept, record.verdict.steps) == (False, min(steps, 18 - at))
    assert record.verdict.found > record.verdict.bound >= record.verdict.promised > 0
    assert "Harmed." in record.message
    assert "Taken back after" in record.message
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == [1, 2, 3]
    again = evolve.load(tmp_path / "run", model=Net())
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in Net().state_dict().items()}


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (OptimizerConfig(options={"lr": 0.01, "amsgrad": True}), LrScheduleConfig(name="CosineAnnealingLR")),
        (OptimizerConfig(name="RMSprop"), LrScheduleConfig(name="ReduceLROnPlateau", interval="epoch")),
        (OptimizerConfig(name="SGD", options={"lr": 0.02}), None),
    ],
)
@pytest.mark.parametrize("operator", ["harm", "break"])
def test_other_optimizers_and_schedules_go_back_too(tmp_path, optimizer, schedule, operator):
    settings = {"optimizer": optimizer, "lr_schedule": schedule, "training": TrainingConfig(epochs=3, device="cpu")}
    one = run_of(evolution=EvolutionConfig(), **settings)
    one.run()
    two = run_of(evolution=evolution(operator, 4, [5]), **settings)
    two.run()
    assert [record.status for record in two.lineage] == ["rolled_back"]
    assert without_log(two) == without_log(one)


def test_what_goes_back_is_the_same_objects_bit_for_bit():
    evolver = run_of(evolution=evolution("harm", 3, [5], care={"shrink": {}, "batchnorm": 1, "decay_grace": 9}))
    state, seen = evolver.state, {}
    remember, go_back = evolver.controller.probation.remember, evolver.controller._go_back

    def look():
        shadow = [(name, value.clone()) for name, value in state.ema.shadow.items()]
        position = (state.epoch, state.step, state.batch, state.ema.updates, random.getstate())
        return fingerprint(state.model, state.optimizer), shadow, position, state.scheduler.state_dict()

    def remembering(*args):
        seen["before"] = look()
        remember(*args)

    def going_back():
        go_back()
        seen["after"] = look()

    evolver.controller.probation.remember, evolver.controller._go_back = remembering, going_back
    evolver.run()
    (print_before, shadow, *rest), (print_after, shadow_after, *rest_after) = seen["before"], seen["after"]
    assert print_before == print_after
    assert rest == rest_after
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(shadow, shadow_after, strict=True))


def test_what_does_not_harm_is_kept(tmp_path):
    config = evolution("deepen", 4, [5])
    evolver = run_of(tmp_path / "run", evolution=config)
    result = evolver.run()
    assert result.applied == 1
    (record,) = evolver.lineage
    assert record.status == "applied"
    assert record.verdict.kept
    assert record.verdict.found <= record.verdict.bound
    assert "Kept after 4 steps on probation: val_loss" in record.message
    same = run_of(tmp_path / "same", evolution=config.model_copy(update={"probation": None}))
    same.run()
    assert without_log(same) == without_log(evolver)  # probation looks on, and touches nothing
    assert "Kept after" in (tmp_path / "run" / "lineage.jsonl").read_text()


def test_a_cut_to_a_target_goes_back_bit_for_bit(plain):
    narrow = [{"name": "narrow", "sites": ["*"], "options": {"target": {"params": 0.6}, "criterion": "fpgm"}}]
    evolver = run_of(evolution=evolution("narrow", 3, [6], operators=narrow))
    evolver.controller.probation.verdict = _always_bad(evolver.controller.probation)
    seen = []
    evolver.events.listen(lambda event: seen.append(sum(p.numel() for p in evolver.model.parameters())))
    evolver.run()
    assert [record.status for record in evolver.lineage] == ["rolled_back"]
    assert min(seen) <= 0.6 * max(seen)  # it had been smaller
    assert without_log(evolver) == plain


def test_growth_and_shrinking_go_back_together():
    wide = [{"name": "widen", "sites": ["features.0"], "options": {"factor": 2.0}}]
    evolver = run_of(evolution=evolution("widen", 2, [5], operators=wide, care={"shrink": {}}))
    evolver.controller.probation.verdict = _always_bad(evolver.controller.probation)
    evolver.run()
    assert [record.status for record in evolver.lineage] == ["rolled_back", "rolled_back"]
    assert evolver.model.features[0].out_channels == 4


def _always_bad(probation):
    verdict = probation.verdict

    def judge():
        found = verdict()
        return found and found.model_copy(update={"kept": False})

    return judge


def test_a_mutation_that_falls_due_waits(tmp_path):
    config = evolution("deepen", 5, [4, 6, 7])
    evolver = run_of(tmp_path / "run", evolution=config)
    evolver.run()
    assert [record.step for record in evolver.lineage] == [4, 9]
    evolver = run_of(evolution=evolution("harm", 5, [4, 6]))
    evolver.run()
    assert [record.step for record in evolver.lineage] == [4, 6]  # it went back, and came by there once more


@pytest.fixture(scope="module")
def mixed():
    """Mutations that stay and others that go, on probation."""
    return {
        "schedule": {"name": "at", "options": {"steps": [2, 6, 12]}},
        "operators": [{"name": "harm", "sites": ["features"]}, {"name": "deepen"}],
        "probation": {"steps": 3},
        "care": {"decay_grace": 4, "rewarm": {"steps": 3}},
    }


@pytest.mark.parametrize("steps", [[1], [2], [3], [4], [5], [6], [7], [8], [9], [10], [13], [15], [3, 4], [7, 8, 13]])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, mixed, steps):
    config = EvolutionConfig.model_validate(mixed)
    whole = run_of(tmp_path / "whole", evolution=config)
    whole.run()
    assert [r.status for r in whole.lineage] == ["rolled_back", "applied", "rolled_back"]
    evolver = run_of(tmp_path / "run", evolution=config)
    for step in steps:
        stop_after(evolver, step).run()
        torch.manual_seed(999)
        random.seed(999)
        evolver = run_of(tmp_path / "run", evolution=config).restore()
        assert evolver.state.step in ((step, 2, 6, 12) if step > 2 else (step,))
    evolver.run()
    assert digests(evolver) == digests(whole)
    text = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "run")]
    assert len(text[0].splitlines()) == len(text[1].splitlines()) == 3


def test_the_same_evolver_goes_on_within_a_probation(tmp_path, mixed):
    config = EvolutionConfig.model_validate(mixed)
    whole = run_of(evolution=config)
    whole.run()
    evolver = run_of(tmp_path / "run", evolution=config)
    stop_after(evolver, 3).run()
    assert evolver.controller.probation.records == [0]
    evolver.run()
    assert digests(evolver) == digests(whole)


def test_a_loss_that_is_not_finite_is_taken_back_on_probation(plain):
    evolver = run_of(evolution=evolution("break", 6, [5]))
    evolver.run()
    (record,) = evolver.lineage
    assert (record.status, record.verdict.found) == ("rolled_back", None)
    assert "val_loss is no longer finite" in record.message
    assert without_log(evolver) == plain


def test_a_first_step_that_is_not_finite_is_taken_back_without_probation(plain):
    evolver = run_of(evolution=evolution("break", 6, [5], probation=None))
    assert evolver.run().finished
    (record,) = evolver.lineage
    assert (record.status, record.verdict) == ("rolled_back", None)
    assert "in the first step after the mutation: taken back." in record.message
    assert without_log(evolver) == plain


def test_flops_stay_spent():
    training = TrainingConfig(epochs=None, flops=10**7, device="cpu", seed=3)
    alone = make(training=training, evolution=EvolutionConfig())
    alone.run()
    evolver = run_of(training=training, evolution=evolution("harm", 3, [5]))
    seen = []
    go_back = evolver.controller._go_back

    def going_back():
        before = (evolver.state.step, evolver.state.flops)
        go_back()
        seen.append((*before, evolver.state.step, evolver.state.flops))

    evolver.controller._go_back = going_back
    assert evolver.run().finished
    ((late, spent, early, after),) = seen
    assert (late, early) == (8, 5)
    assert after == spent == evolver.history[0]["flops"] * 8 // 9  # epoch 1 took 6 steps and the 3 that were lost
    assert alone.state.step - evolver.state.step == 3  # of the same budget


def test_a_budget_that_runs_out_within_a_probation_ends_with_what_was_before(tmp_path):
    training = TrainingConfig(epochs=None, flops=10**7, device="cpu", seed=3)
    steps = make(training=training, evolution=EvolutionConfig())
    steps.run()
    last = steps.state.step
    evolver = run_of(tmp_path / "run", training=training, evolution=evolution("harm", 9, [last - 2]))
    assert evolver.run().finished
    assert evolver.lineage.records[0].verdict.steps == 2
    assert evolver.state.step == last - 2 == evolver.history[-1]["step"]
    assert evolver.history[-1]["progress"] == 1
    assert evolver.history[-1]["val_loss"] == evaluate(evolver.state, evolver.val_data.epoch(0))["loss"]
    resumed = run_of(tmp_path / "run", training=training, evolution=evolution("harm", 9, [last - 2])).restore()
    assert resumed.finished
    assert digests(resumed) == digests(evolver)


def test_a_stop_where_a_mutation_is_taken_back_is_saved(tmp_path, plain):
    evolver = stop_after(run_of(tmp_path / "run", evolution=evolution("harm", 5, [8])), 13)
    assert not evolver.run().finished
    assert evolver.lineage.records[0].status == "rolled_back"
    resumed = run_of(tmp_path / "run", evolution=evolution("harm", 5, [8])).restore()
    assert [record.status for record in resumed.lineage] == ["rolled_back"]  # and not made and judged again
    lines = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert lines == [1]  # the second epoch, which ended on probation, went back too
    assert resumed.run().finished
    assert without_log(resumed) == plain


def test_by_accuracy():
    evolver = run_of(evolution=evolution("harm", 4, [5], probation={"steps": 4, "metric": "val_accuracy"}))
    assert evolver.run().finished
    verdict = evolver.lineage.records[0].verdict
    assert verdict.metric == "val_accuracy"
    assert verdict.kept == (verdict.found >= verdict.bound)
    assert verdict.bound <= verdict.promised
    x = torch.randn(16, 4)
    other = evolve.Evolver(
        nn.Linear(4, 2),
        (x, x[:, :2]),
        (x, x[:, :2]),
        training=TrainingConfig(epochs=2, device="cpu", loss={"name": "mse_loss"}),
        evolution=evolution("dropout", 1, [1], probation={"steps": 1, "metric": "val_accuracy"}),
        batch_size=4,
        progress=False,
    )
    with pytest.raises(EvolveError, match=r"this run has no 'val_accuracy'.*val_loss"):
        other.run()


def test_the_trend_begins_after_the_last_mutation():
    evolver = run_of(
        training=TrainingConfig(epochs=12, device="cpu"), evolution=evolution("deepen", 2, [13, 40]), lr_schedule=None
    )
    evolver.run()
    first, second = evolver.lineage
    assert first.verdict.points == 3  # epochs 1 and 2, and the moment itself
    assert second.verdict.points == 5  # epochs 3 to 6 (steps 18, ..., 36), and the moment itself


@pytest.mark.parametrize("curve", [math.log, lambda x: -(x**-0.5), lambda x: -1 / x, lambda x: -(x**-2)])
def test_a_curve_is_continued(curve):
    points = [(step, 3.0 - 0.5 * curve(step)) for step in (10, 20, 40, 80)]
    found = extrapolate(points, 160, 0.0)
    assert found.value == pytest.approx(3.0 - 0.5 * curve(160), abs=1e-5)
    assert (found.margin < 1e-5, found.points) == (True, 4)
    assert extrapolate(points, 160, 0.1).margin == pytest.approx(0.1645, abs=1e-5)


def test_what_is_promised_with_little_or_nothing_to_go_by():
    points = [(step, 3.0 - 0.5 * math.log(step)) for step in (10, 20, 40, 80)]
    assert extrapolate(points, 10**6, 0.0).value == 0.0  # where it would be far below
    few = extrapolate(points[:2], 160, 0.1)
    assert (few.value, few.margin, few.points) == (
        points[1][1],
        pytest.approx(math.hypot(0.1645, points[1][1] / 10)),
        0,
    )
    assert extrapolate([(1, 0.0)] * 3 + points * 4, 160, 0).points == MOST


@pytest.mark.parametrize(
    ("curve", "n", "least", "most"),
    [
        (math.log, 3, 0.02, 0.06),
        (math.log, 5, 0.01, 0.05),
        (math.log, 10, 0.02, 0.06),
        (lambda x: -1 / x, 3, 0.05, 0.15),
        (lambda x: -1 / x, 5, 0.03, 0.09),
        (lambda x: -1 / x, 10, 0.03, 0.08),
    ],
)
def test_about_one_in_twenty_is_beyond_the_margin(curve, n, least, most):
    generator = random.Random(n)
    beyond = 0
    for _ in range(3000):
        points = [(10 * i, 2 - 0.3 * curve(i) + generator.gauss(0, 0.05)) for i in range(1, n + 1)]
        found = extrapolate(points, 10 * (n + 2), 0.0)
        beyond += 2 - 0.3 * curve(n + 2) + generator.gauss(0, 0.05) > found.value + found.margin
    assert least < beyond / 3000 < most


def test_standard_error_of_pairs():
    assert standard_error([1.0, 2.0, 3.0], [2.0, 2.0, 5.0]) == pytest.approx(1 / 3**0.5)
    assert standard_error([1.0], [2.0]) == 0.0


def scores(evolver, values):
    """Lets the run's held-out loss be as given, one call after the other; the last one stays."""
    values = list(values)

    def score(metric):
        value = values.pop(0) if len(values) > 1 else values[0]
        return Score(value, [value] * 2)

    evolver.controller.loop.score = score


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [(1.0, math.inf, False), (1.0, math.nan, False), (math.inf, 1.0, True), (math.nan, math.inf, False)],
)
def test_a_held_out_loss_that_is_not_finite_is_judged(tmp_path, before, after, kept):
    evolver = run_of(tmp_path / "run", evolution=evolution("deepen", 4, [5]))
    scores(evolver, [before, after])
    assert evolver.run().finished
    (record,) = evolver.lineage
    assert record.verdict.kept is kept
    assert record.verdict.found == (after if math.isfinite(after) else None)
    assert record.verdict.before == (before if math.isfinite(before) else None)
    (read,) = Lineage.read(tmp_path / "run" / "lineage.jsonl")
    assert read.verdict == record.verdict


@pytest.mark.parametrize("curve", [[900, 500, 147], [2000, 147], [60, 300, 147], [5000, 1000, 400, 200, 147]])
@pytest.mark.parametrize(("found", "kept"), [(326.0, False), (170.0, False), (150.0, True), (120.0, True)])
def test_few_noisy_points_excuse_no_harm(curve, found, kept):
    """More than a tenth above what there was is harm, however widely the points before it scatter."""
    evolver = run_of(evolution=evolution("deepen", 4, [5]))
    probation, values = evolver.controller.probation, [147.0, found]
    scores(evolver, values)
    history = [{"step": 2 * i + 2, "val_loss": float(value)} for i, value in enumerate(curve[:-1])]
    evolver.state.step = 2 * len(curve)
    probation.remember(history, evolver.lineage)
    probation.begin([0])
    evolver.state.step += 4
    verdict = probation.verdict()
    assert verdict.kept is kept
    assert verdict.bound <= max(147.0, verdict.promised) + 15
