"""One run whose decisions all look at a metric of the user's that rises: F1."""

import json
import logging

import pytest
import torch
from helpers.runs import digest
from torch import nn

import evolve
from evolve import EvolutionConfig, Evolver, OptimizerConfig, OutputConfig, TrainingConfig
from evolve.errors import CheckpointError, EvolveError, MisfitError
from evolve.tasks import TaskConfig
from evolve.training.events import BestImproved, MutationTried, VerdictGiven

F1 = TaskConfig(name="multilabel", metrics=["f1"])


def data(samples, seed):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))
    return x, torch.stack([x[:, 0] + x[:, 1] > 0, x[:, 2] > 0.3, x[:, 3] * x[:, 4] > 0], 1).float()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def run_of(folder=None, epochs=12, patience=None, evolution=None, task=F1, monitor="val_f1", **output):
    return Evolver(
        net(),
        data(96, 1),
        data(64, 2),
        task=task,
        optimizer=OptimizerConfig(name="Adam", options={"lr": 0.05}),
        training=TrainingConfig(epochs=epochs, monitor={"metric": monitor}, patience=patience, device="cpu"),
        evolution=EvolutionConfig.model_validate(evolution or {}),
        output=OutputConfig(dir=str(folder), **output) if folder else None,
        batch_size=16,
        progress=False,
        callbacks=[],
    )


DECISIONS = {
    "schedule": {"name": "plateau", "options": {"patience": 2, "smoothing": 0.0}},
    "policy": {"name": "gradient"},
    "operators": [{"name": "widen", "options": {"factor": 2.0}}],
    "probation": {"steps": 12},
}


def test_everything_looks_at_it(tmp_path):
    run = run_of(tmp_path / "run", epochs=40, patience=8, evolution=DECISIONS)
    told = []
    run.events.callbacks.append(told.append)
    result = run.run()
    values = [line["val_f1"] for line in run.history]
    assert result.finished
    assert result.stopped_early
    assert len(values) < 40
    assert len(values) - 1 - values.index(max(values)) == 8
    bests = [event.value for event in told if isinstance(event, BestImproved)]
    assert bests == [v for i, v in enumerate(values) if v > max(values[:i], default=0)] or any(
        isinstance(event, VerdictGiven) and not event.verdict.kept for event in told
    )
    assert {event.metric for event in told if isinstance(event, BestImproved)} == {"val_f1"}
    reasons = [event.record.reason for event in told if isinstance(event, MutationTried)]
    assert reasons
    assert all(reason.startswith("val_f1 not better than") for reason in reasons)
    verdicts = [event.verdict for event in told if isinstance(event, VerdictGiven)]
    assert verdicts
    for verdict in verdicts:
        assert verdict.metric == "val_f1"
        assert verdict.kept == (verdict.found >= verdict.bound)
    best = evolve.load(tmp_path / "run", model=net())
    predicted = (best(data(64, 2)[0]) > 0).long()
    targets = data(64, 2)[1].long()
    hits = (predicted * targets).sum(0)
    f1 = (2 * hits / (predicted.sum(0) + targets.sum(0))).mean()
    assert float(f1) == pytest.approx(max(values), abs=1e-6)


def test_which_checkpoint_is_loaded(tmp_path, caplog):
    run = run_of(tmp_path / "run", epochs=6, keep=6)
    run.run()
    values = [line["val_f1"] for line in run.history]
    best = values.index(max(values)) + 1
    with caplog.at_level(logging.INFO, "evolve.loading"):
        chosen = evolve.load(tmp_path / "run", model=net())
    assert f"epoch {best}," in caplog.text
    last = evolve.load(tmp_path / "run", model=net(), which="last")
    assert digest(last.state_dict()) == digest(run.model.state_dict())
    assert digest(chosen.state_dict()) == digest(evolve.load(tmp_path / "run", model=net(), which=best).state_dict())
    assert digest(evolve.load(tmp_path / "run", model=net(), which=1).state_dict()) != digest(last.state_dict())
    with pytest.raises(CheckpointError, match="no checkpoint of the end of epoch 9; it has those of 1, 2, 3, 4, 5, 6"):
        evolve.load(tmp_path / "run", model=net(), which=9)
    with pytest.raises(EvolveError, match="expected 'best', 'last'"):
        evolve.load(tmp_path / "run", model=net(), which="newest")


def test_a_stopped_run_has_the_same_patience(tmp_path):
    whole = run_of(tmp_path / "whole", epochs=40, patience=4)
    whole.run()
    part = run_of(tmp_path / "part", epochs=40, patience=4)
    part.events.callbacks.append(lambda event: event.run.stop() if len(event.run.history) == 5 else None)
    part.run()
    rest = run_of(tmp_path / "part", epochs=40, patience=4).restore()
    rest.run()
    assert [line["val_f1"] for line in rest.history] == [line["val_f1"] for line in whole.history]
    assert rest.stopped_early
    assert digest(rest.model.state_dict()) == digest(whole.model.state_dict())


def test_what_was_best_on_probation_counts_only_if_the_mutation_is_kept(tmp_path):
    """The pending checkpoint takes the place of the best one with the verdict, or is deleted with it."""
    kept = {**DECISIONS, "schedule": {"name": "at", "options": {"epochs": [2]}}, "policy": {"name": "round_robin"}}
    run = run_of(tmp_path / "run", epochs=8, evolution=kept)
    seen = []

    def look(event):
        pending, best = (sorted((tmp_path / "run" / name).glob("step-*")) for name in ("best.pending", "best"))
        seen.append((run.controller.testing, [path.name for path in pending], [path.name for path in best]))

    run.events.callbacks.append(look)
    run.run()
    assert not (tmp_path / "run" / "best.pending").exists()
    assert len(list((tmp_path / "run" / "best").glob("step-*"))) == 1
    assert any(testing and pending for testing, pending, _ in seen)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["val_f1"])
    assert (tmp_path / "run" / "best" / f"step-{best['step']:08d}").is_dir()


def rising(predictions, targets):
    return float(((predictions > 0.5) == (targets > 0.5)).float().mean())


def test_a_function_needs_a_way_where_decisions_look_at_it():
    metric = {"name": "evolver.test_monitor:rising", "label": "right"}
    with pytest.raises(EvolveError, match=r"does not say which way is better.*training\.monitor\.mode"):
        run_of(task=TaskConfig(name="multilabel", metrics=[metric]), monitor="val_right")
    run = run_of(task=TaskConfig(name="multilabel", metrics=[{**metric, "mode": "max"}]), monitor="val_right", epochs=2)
    run.run()
    assert 0.5 < run.history[-1]["val_right"] <= 1


def test_a_metric_that_is_not_measured_is_told():
    with pytest.raises(EvolveError, match=r"'val_f2' is not measured.*Did you mean 'val_f1'"):
        run_of(monitor="val_f2")
    with pytest.raises(EvolveError, match="'train_loss' is no metric on held-out data"):
        run_of(monitor="train_loss")
    off = {**DECISIONS, "probation": {"steps": 4, "metric": "val_accuracy"}}
    with pytest.raises(MisfitError, match=r"probation\.metric: this run has no 'val_accuracy'"):
        run_of(evolution=off).run()


def test_nothing_is_mutated_when_patience_is_at_its_end():
    """A schedule that is due at every epoch's end is not asked after the last one."""
    every = {**DECISIONS, "schedule": {"name": "every", "options": {"epochs": 1}}, "probation": None}
    every["operators"] = [{"name": "widen", "options": {"factor": 1.25}}]
    run = run_of(epochs=40, patience=3, evolution={**every, "policy": {"name": "round_robin"}})
    assert run.run().stopped_early
    assert run.history[-1]["params"] == sum(p.numel() for p in run.model.parameters())
    assert max(record.step for record in run.lineage) < run.state.step


def test_patience_ends_a_probation(tmp_path):
    """The mutation is judged with the last epoch, and what was best meanwhile counts or not; nothing is left open."""
    config = {
        **DECISIONS,
        "schedule": {"name": "at", "options": {"epochs": [3]}},
        "policy": {"name": "round_robin"},
        "probation": {"steps": 600},
    }
    run = run_of(tmp_path / "run", epochs=100, patience=6, evolution=config)
    result = run.run()
    assert result.stopped_early or result.finished
    assert not run.controller.testing
    assert [record.verdict is not None for record in run.lineage] == [True]
    assert not (tmp_path / "run" / "best.pending").exists()
    assert evolve.load(tmp_path / "run", model=net(), which="last")
    again = run_of(tmp_path / "run", epochs=100, patience=6, evolution=config).restore()
    assert again.finished
    assert digest(again.model.state_dict()) == digest(run.model.state_dict())
