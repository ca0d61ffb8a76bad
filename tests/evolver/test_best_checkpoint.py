"""The checkpoint of the best epoch belongs to the history that a run goes on with, and is there at any moment."""

import os
import shutil

import pytest
import torch
from helpers.runs import digest
from torch import nn

import evolve
from evolve import Evolver, OutputConfig, TrainingConfig
from evolve.errors import EvolveError
from evolve.training.checkpoint import save_checkpoint, settle_best
from evolve.training.events import EpochEnded, StepMade
from evolve.training.opening import BEST, PENDING, open_best


def net():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def run_of(folder, accuracies, monkeypatch, callbacks=(), **training):
    """A run whose epochs have these accuracies, saved after every fourth; an epoch is two steps."""
    found = iter(accuracies)
    evaluate = "evolve.training.metrics.evaluate"
    monkeypatch.setattr(evaluate, lambda state, batches: {"loss": 1.0, "accuracy": next(found)})
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    data = x, x[:, :3].argmax(1)
    monitored = {"epochs": 7, "device": "cpu", "monitor": {"metric": "val_accuracy"}, **training}
    return Evolver(
        net(), data, data, batch_size=8, progress=False, callbacks=callbacks,
        output=OutputConfig(dir=str(folder), checkpoint_every=4), training=TrainingConfig.model_validate(monitored),
    )  # fmt: skip


def bests(folder):
    return sorted(path.name for path in (folder / BEST).glob("step-*"))


@pytest.mark.parametrize("rest", [[0.5, 0.3, 0.2], [0.65, 0.7, 0.3]])
def test_what_was_best_in_epochs_that_were_lost_does_not_count(tmp_path, monkeypatch, rest):
    """The run breaks off after six epochs, the last two its best, and goes on from the fourth, trained otherwise."""
    weights = {}

    def listen(event):
        if isinstance(event, EpochEnded):
            weights[event.metrics["step"]] = digest(event.run.model.state_dict())
        if isinstance(event, StepMade) and event.step == 13:
            raise RuntimeError("the machine is gone")

    run = run_of(tmp_path, [0.4, 0.6, 0.5, 0.5, 0.8, 0.9], monkeypatch, [listen])
    with pytest.raises(EvolveError, match="the machine is gone"):
        run.run()
    assert bests(tmp_path) == ["step-00000004", "step-00000012"]
    assert digest(evolve.load(tmp_path, net()).state_dict()) == weights[12]

    again = run_of(tmp_path, rest, monkeypatch, [lambda event: listen(event) if type(event) is EpochEnded else None],
                   grad_clip=0.01).restore()  # fmt: skip
    again.run()
    step = max(again.history, key=lambda line: line["val_accuracy"])["step"]
    assert step == (4 if max(rest) < 0.6 else 12)
    assert bests(tmp_path) == [f"step-{step:08d}"]
    assert digest(evolve.load(tmp_path, net()).state_dict()) == weights[step]


def test_a_run_that_goes_on_in_memory_keeps_its_best(tmp_path, monkeypatch):
    failures = [11]

    def fail(event):
        if isinstance(event, StepMade) and event.step in failures:
            failures.remove(event.step)
            raise RuntimeError("once")

    run = run_of(tmp_path, [0.4, 0.6, 0.5, 0.5, 0.8, 0.7, 0.7], monkeypatch, [fail])
    with pytest.raises(EvolveError, match="once"):
        run.run()
    run.run()
    assert bests(tmp_path) == ["step-00000010"]


def test_a_best_is_there_at_any_moment_of_a_verdict(tmp_path, monkeypatch):
    run = run_of(tmp_path, [0.5] * 7, monkeypatch)
    for step, root in ((3, BEST), (5, PENDING)):
        run.state.step = step
        save_checkpoint(tmp_path, run.state, run.lineage, {"history": []}, 1, root=root)
    seen = []

    def watched(real):
        def call(*args, **kwargs):
            seen.append(open_best(tmp_path).content.step)
            real(*args, **kwargs)
            seen.append(open_best(tmp_path).content.step)

        return call

    for module, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    settle_best(tmp_path, kept=True)
    assert seen == sorted(seen)
    assert {*seen} == {3, 5}
    assert open_best(tmp_path).content.step == 5
    assert not (tmp_path / PENDING).exists()
