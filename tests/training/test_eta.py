"""The time a run will still take: right at an even pace, after the model has grown, and it does not jump about."""

import io
import random

import pytest

from evolve.budget import Budget
from evolve.training.eta import Eta, duration
from evolve.training.events import EpochEnded, RunBegun, StepMade
from evolve.training.progress import Progress


def seen(paces, steps=1000):
    """An Eta that has seen one step after the other, which took so long; the time left after each of them."""
    now = [0.0]
    eta = Eta(clock=lambda: now[0])
    found = []
    for step, pace in enumerate(paces, 1):
        now[0] += pace
        eta.see(step / steps)
        found.append(eta.left)
    return eta, found


def test_an_even_pace():
    eta, left = seen([0.5] * 400)
    assert left[0] is None
    assert left[1] == pytest.approx(998 * 0.5)
    assert left[-1] == pytest.approx(600 * 0.5)
    assert eta.elapsed == pytest.approx(399 * 0.5)


def test_it_follows_a_model_that_grows():
    _, left = seen([0.1] * 200 + [0.4] * 400)
    assert left[-1] == pytest.approx(400 * 0.4, rel=0.02)


def test_it_is_stable():
    """Steps that vary by a half, and an evaluation each 50, which takes a third of the time.

    After a fifth of the run the estimate stays within 10 %, but for where it stands between two evaluations.
    """
    random.seed(0)
    paces = [random.uniform(0.5, 1.5) + (20 if step % 50 == 0 else 0) for step in range(1, 1001)]
    _, left = seen(paces)
    rest = [sum(paces[step:]) for step in range(1, 1001)]
    assert all(abs(a - b) < 0.1 * b + 25 for a, b in zip(left[200:], rest[200:], strict=True))


def test_a_long_run_needs_little_memory():
    eta, left = seen([1.0] * 50_000, steps=100_000)
    assert len(eta._marks) <= 65
    assert left[-1] == pytest.approx(50_000, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (725, "12m05s"), (3600, "1h00m"), (12_000, "3h20m"),
     (86_400 * 5 + 3 * 3600, "5d03h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_run_tells_it(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("evolve.training.progress.Eta", lambda: Eta(clock=lambda: now[0]))
    shown = Progress(Budget("epochs", 4), steps=2)
    shown(RunBegun(None, Budget("epochs", 4), 2, 0, 0.0))
    for step in (1, 2):
        now[0] += 30
        shown(StepMade(None, 0, step, step, 0.5, step / 8))
    metrics = {
        "epoch": 1,
        "train_loss": 1.0,
        "val_loss": 1.0,
        "lr": 0.1,
        "params": 9,
        "seconds": 60.0,
        "progress": 0.25,
    }
    shown(EpochEnded(None, metrics))
    assert capsys.readouterr().out == "epoch 1/4  train 1.0000  val 1.0000  lr 0.1  9 params  60.0s  3m00s left\n"


def test_the_live_line_tells_it_too(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("evolve.training.progress.Eta", lambda: Eta(clock=lambda: now[0]))
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    with Progress(Budget("epochs", 4), steps=2) as shown:
        for step in (1, 2, 3):
            now[0] += 30
            shown(StepMade(None, (step - 1) // 2, step, (step - 1) % 2 + 1, 0.5, step / 8))
        assert shown._bar.desc == "epoch 2/4: "
        assert shown._bar.postfix == "run 1m00s, 2m30s left"
