"""How long a run is: in epochs, steps, seconds or FLOPs."""

import json
import time

import pytest
import torch
from helpers.runs import after_each_step
from helpers.small_runs import SMALL, evolver, net
from helpers.yaml_files import GOOD, edit
from pydantic import ValidationError
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from typer.testing import CliRunner

from evolve import TrainingConfig, load_config
from evolve.budget import Budget, Spent, whole
from evolve.cli import app
from evolve.errors import EvolveError
from evolve.training.progress import Progress


def widening(**schedule):
    """Twice the hidden units: exactly twice the FLOPs."""
    return {
        "schedule": {"name": "at", "options": schedule},
        "operators": [{"name": "widen", "sites": ["0"], "options": {"factor": 2}}],
    }


@pytest.mark.parametrize(
    ("budget", "progress", "ticks", "text"),
    [
        (Budget("epochs", 10), 0.25, 80, "10 epochs"),
        (Budget("steps", 50), 0.4, 50, "50 steps"),
        (Budget("seconds", 40), 0.75, 1000, "40 seconds"),
        (Budget("flops", 1e6), 0.5, 334, "1e+06 FLOPs"),
        (Budget("steps", 5), 1.0, 5, "5 steps"),
    ],
)
def test_budgets(budget, progress, ticks, text):
    spent = Spent(epochs=2.5, steps=20, seconds=30.0, flops=500_000)
    assert (budget.progress(spent), budget.ticks(8, 3000), str(budget)) == (progress, ticks, text)


def test_parts_are_counted_as_in_exact_arithmetic():
    for parts in range(1, 400):
        assert [whole(step / parts * parts) for step in range(parts + 1)] == list(range(parts + 1))
    assert whole(0.3 / 0.1) == 3
    assert whole(2.99) == 2


def test_one_budget_is_given():
    assert TrainingConfig().budget == Budget("epochs", 10)
    assert TrainingConfig(steps=3).budget == Budget("steps", 3)
    assert TrainingConfig(steps=3).epochs is None
    assert TrainingConfig(epochs=None, flops=10).budget == Budget("flops", 10)
    for wrong in ({"epochs": 1, "steps": 1}, {"seconds": 1, "flops": 1}, {"epochs": None}, {"steps": 0}):
        with pytest.raises(ValidationError):
            TrainingConfig(**wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (edit("epochs: 1\n", "epochs: 1\n  steps: 5\n"), ["training.steps: 'epochs' is given too", "one budget"]),
        (edit("epochs: 1\n", "epochs: null\n"), ["training.epochs: is null", "epochs, steps, seconds, flops"]),
        (edit("epochs: 1\n", "second: 1\n"), ["training.second: unknown key", "Did you mean 'seconds'?"]),
        (edit("epochs: 1\n", "flops: much\n"), ["training.flops: has to be a number", "'much'"]),
        (edit("epochs: 1\n", "seconds: .inf\n"), ["training.seconds: has to be a finite number"]),
        (
            edit("name: every, options: {epochs: 1}", "name: every, options: {progres: 0.1}"),
            ["Did you mean 'progress'?"],
        ),
        (edit("name: every, options: {epochs: 1}", "name: at, options: {progress: [1.5]}"), ["less than 1"]),
        (edit("options: {epochs: 1}}", "options: {epochs: 1, progress: 0.1}}"), ["'epochs' or 'steps' or 'progress'"]),
    ],
)
def test_faults_are_told(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    told = CliRunner().invoke(app, ["validate", str(file)])
    assert told.exit_code == 2
    for word in words:
        assert word in told.stderr


def test_a_budget_on_the_command_line_wins_over_another_in_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    assert load_config(file, ["training.flops=1e12"]).training.budget == Budget("flops", 1e12)
    assert load_config(file, ["training.flops=3000000000"]).training.budget == Budget("flops", 3e9)
    assert load_config(file, ["training.epochs=4"]).training.budget == Budget("epochs", 4)
    assert load_config(file).training.budget == Budget("epochs", 1)
    with pytest.raises(EvolveError, match="'steps' is given too"):
        load_config(file, ["training.steps=4", "training.seconds=9"])


def test_a_run_of_steps_ends_within_an_epoch_and_evaluates_there(tmp_path):
    run = evolver(tmp_path / "run", steps=12)
    result = run.run()
    assert (result.finished, result.progress, run.state.step, run.state.epoch, run.state.batch) == (True, 1, 12, 2, 2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(m["epoch"], m["step"]) for m in lines] == [(1, 5), (2, 10), (2, 12)]
    assert [m["progress"] for m in lines] == pytest.approx([5 / 12, 10 / 12, 1])
    assert [m["flops"] for m in lines] == [3 * SMALL * 8 * steps for steps in (5, 10, 12)]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if "12" in p.name] == ["step-00000012"]
    assert evolver(tmp_path / "run", steps=12).restore().run().finished  # nothing is left to do
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_flops_are_the_budget_also_where_the_model_becomes_dearer():
    amount = 3 * SMALL * 8 * 20  # twenty steps of the small net
    run = evolver(evolution=widening(progress=[0.5]), flops=amount)
    rates = []
    after_each_step(run, lambda: rates.append(run.state.lr))
    result = run.run()
    assert result.applied == 1
    record = run.lineage.applied[0]
    assert (record.step, record.reason) == (10, "0.5 of the budget")
    assert (record.flops_before, record.flops_after) == (SMALL, 2 * SMALL)
    assert run.state.step == 15  # ten steps of the small net, five of one twice as dear
    assert run.state.flops == amount
    reference = OneCycleLR(torch.optim.SGD(net().parameters(), lr=0.1), max_lr=0.1, total_steps=20)
    expected = []
    for _ in range(20):
        reference.optimizer.step()
        reference.step()
        expected.append(reference.get_last_lr()[0])
    assert rates == pytest.approx(expected[:10] + expected[11::2])


def test_a_budget_of_seconds_ends_in_time():
    run = evolver(seconds=0.5)
    started = time.perf_counter()
    result = run.run()
    took = time.perf_counter() - started
    assert result.finished
    assert 0.5 <= run.state.seconds <= took < 5
    assert run.state.step > 20
    assert run.state.scheduler.last_epoch > 900  # of a thousand
    assert sum(m["seconds"] for m in run.history) == pytest.approx(run.state.seconds)


def test_flops_that_cannot_be_counted_are_told():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x[:, :3] * self.scale

    with pytest.raises(EvolveError, match=r"whose FLOPs can be counted.*training.epochs, steps or seconds"):
        evolver(model=Still(), flops=1e6)
    assert evolver(model=Still(), steps=3).run().finished
    with pytest.raises(EvolveError, match="Linear fails on the probe batch"):
        evolver(model=nn.Linear(9, 3), flops=1e6)


def test_a_run_that_is_not_in_epochs_shows_its_progress(capsys):
    run = evolver(steps=8)
    run.events.listen(Progress(run.training.budget, 5))
    run.run()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:17] for line in lines] == ["epoch   1  62.5% ", "epoch   1 100.0% "]
