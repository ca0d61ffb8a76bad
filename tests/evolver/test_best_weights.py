"""The weights that a run ends with, and when it ends early."""

import pytest
import torch
from torch import nn

import evolve
from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.config.options import Monitor
from evolve.evolver.ending import closing_lines
from evolve.training.monitor import out_of_patience

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(96, 1, generator=torch.Generator().manual_seed(1))
Y = X[:, :1] + NOISE  # little to learn: what is trained for long has learned the noise
TRAIN, VAL = (X[:32], Y[:32]), (X[32:], Y[32:])
GROWS = {"schedule": {"name": "at", "options": {"epochs": [60]}}, "operators": ["widen"]}


def run_of(folder=None, evolution=None, optimizer=None, **training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    return Evolver(
        model,
        TRAIN,
        VAL,
        task="regression",
        optimizer=optimizer or torch.optim.AdamW(model.parameters(), lr=0.01),
        training=TrainingConfig(**{"epochs": 80, "device": "cpu", "keep_best": True, **training}),
        evolution=EvolutionConfig.model_validate(evolution or {}),
        output=folder,
        batch_size=16,
        progress=False,
    )


def loss_of(model):
    with torch.no_grad():
        return nn.functional.mse_loss(model(VAL[0]), VAL[1]).item()


@pytest.mark.parametrize("ema", [None, "auto"])
def test_a_run_ends_with_the_weights_of_its_best_epoch(ema):
    run = run_of(ema=ema)
    result = run.run()
    losses = [line["val_loss"] for line in run.history]
    assert min(losses) < 0.9 * losses[-1]
    assert loss_of(run.model) == pytest.approx(min(losses), rel=1e-5)
    assert result.metrics["epoch"] == losses.index(min(losses)) + 1
    last = run_of(ema=ema, keep_best=False)
    assert last.run().metrics["epoch"] == 80
    if ema is None:
        assert loss_of(last.model) == pytest.approx(losses[-1], rel=1e-5)


def test_the_best_epoch_is_one_since_the_last_mutation():
    run = run_of(evolution=GROWS)
    result = run.run()
    assert result.applied == 1
    losses = [line["val_loss"] for line in run.history]
    assert result.metrics["epoch"] == 61 + losses[60:].index(min(losses[60:]))
    assert min(losses[:60]) < min(losses[60:])
    assert loss_of(run.model) == pytest.approx(min(losses[60:]), rel=1e-5)


@pytest.mark.parametrize("at", [10, 70])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, at):
    """At 10 the best epoch is yet to come, at 70 it is over."""
    whole = run_of()
    whole.run()
    first = run_of(tmp_path / "run")
    first.events.callbacks.append(lambda event: first.stop() if first.state.epoch == at else None)
    assert not first.run().finished
    second = run_of(tmp_path / "run").restore()
    assert second.run().finished
    for own, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_run_that_is_over_is_not_saved_with_other_weights(tmp_path):
    run, whole = run_of(tmp_path / "run", epochs=40), run_of(epochs=80)
    run.run()
    run.run()
    run.save()
    loaded = evolve.load(tmp_path / "run", model=run_of().model, which="best")
    for own, other in zip(loaded.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(own, other)
    longer = run_of(tmp_path / "run", epochs=80).restore()
    assert longer.run().finished
    whole.run()
    for own, other in zip(longer.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_end_says_which_weights_the_model_has():
    run = run_of(monitor={"metric": "val_r2"})
    result = run.run()
    text = "\n".join(closing_lines(run, result))
    assert f"Weights             of epoch {result.metrics['epoch']}\n" in text
    assert "Last val_r2" not in text
    run = run_of(monitor={"metric": "val_r2"}, keep_best=False)
    assert "Last val_r2" in "\n".join(closing_lines(run, run.run()))


MONITOR = Monitor("val_loss", "min")


def epochs_until_the_end(values, patience):
    lines = [{"val_loss": value} for value in values]
    return next((n for n in range(1, len(lines) + 1) if out_of_patience(lines[:n], MONITOR, patience)), None)


def test_patience_as_a_part_of_the_epochs():
    falling = [1 / (1 + n) for n in range(60)]
    assert epochs_until_the_end(falling, 0.4) is None
    assert epochs_until_the_end([*falling, *[1.0] * 60], 0.4) == 100
    assert epochs_until_the_end([0.5, *[1.0] * 60], 0.4) == 21  # at least
    assert epochs_until_the_end([*[0.5, 1.0] * 15, *[1.0] * 60], 0.4) == 49  # one that is as good counts
    assert epochs_until_the_end([*[0.5, 1.0] * 15, *[1.0] * 60], 3) == 4
    assert epochs_until_the_end([float("nan")] * 60, 0.4) == 20


def test_a_run_ends_where_it_has_been_worse_for_long_enough():
    run = run_of(patience=0.4, epochs=500)
    result = run.run()
    best = result.metrics["epoch"]
    assert result.stopped_early
    assert len(run.history) == max(best + 20, -(-best // 0.6))
