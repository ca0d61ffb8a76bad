"""The Evolver and the command line: whole runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.images import data, net
from helpers.pages import ROOT
from torch import nn
from typer.testing import CliRunner

import evolve
from evolve import EvolutionConfig, Evolver, OptimizerConfig, OutputConfig, TrainingConfig
from evolve.cli import app
from evolve.data import build_data
from evolve.errors import DataError, EvolveError, NonFiniteLossError
from evolve.lineage import Lineage
from evolve.operators import operators


def evolver(model=None, folder=None, epochs=4, evolution=None, **changes):
    settings = {
        "optimizer": OptimizerConfig(name="SGD", options={"lr": 0.05, "momentum": 0.9}),
        "training": TrainingConfig(epochs=epochs, device="cpu", seed=1),
        "evolution": EvolutionConfig.model_validate(evolution or {}),
        "batch_size": 16,
        "output": folder,
        "progress": False,
    }
    return Evolver(model or net(), data(), data(32, 1), **{**settings, **changes})


def every(period=1, **changes):
    section = {
        "schedule": {"name": "every", "options": {"epochs": period}},
        "operators": [{"name": "residual", "sites": ["0"]}],
    }
    return {**section, **changes}


# Losses of the run below, with an insertion after the second epoch, seeded. Printed by the run itself on x86; a change
# of the loop, of the data order, of the mutation's seed or of what the optimizer carries along moves them.
GOLDEN = [0.876054, 0.348650, 0.564997, 0.194677]


def golden_run(mutated=True):
    evolution = {
        "schedule": {"name": "at", "options": {"epochs": [2]}},
        "operators": [{"name": "deepen", "sites": ["0"]}],
    }
    run = evolver(evolution=evolution if mutated else None)
    result = run.run()
    assert result.applied == int(mutated)
    return [m["train_loss"] for m in run.history]


def test_golden_loss_curve():
    assert golden_run() == pytest.approx(GOLDEN, rel=1e-4)
    plain = golden_run(mutated=False)
    assert plain[:2] == pytest.approx(GOLDEN[:2], rel=1e-4)
    assert plain[2:] != pytest.approx(GOLDEN[2:], rel=1e-4)


def test_a_run_with_an_optimizer_of_ones_own_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = evolver(model, evolution=every(), optimizer=optimizer)
    result = run.run()
    assert run.state.optimizer is optimizer
    assert run.model is model
    assert result.finished
    assert (result.applied, result.refused) == (1, 2)  # the second and third round find a shortcut there already
    assert (result.params_from, result.params_to) == (4 + 36 + 8 + 195, sum(p.numel() for p in model.parameters()))
    assert {id(p) for p in model.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not list(tmp_path.iterdir())


def test_no_mutation_after_the_last_epoch():
    run = evolver(evolution=every(), epochs=1)
    assert run.run().applied == 0
    assert len(run.lineage) == 0


def test_records_say_when_why_and_what_was_before(tmp_path):
    run = evolver(folder=tmp_path / "run", evolution=every(2))
    run.run()
    record = json.loads((tmp_path / "run" / "lineage.jsonl").read_text().splitlines()[0])
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == [1, 2, 3, 4]
    assert (record["epoch"], record["step"], record["reason"]) == (2, 8, "every 2 epochs")
    assert record["metrics_before"] == {k: v for k, v in metrics[1].items() if k.startswith("val_")}
    assert (record["operator"], record["site"], record["status"], record["success"]) == (
        "residual",
        "0",
        "applied",
        True,
    )
    assert record["params_after"] - record["params_before"] == metrics[2]["params"] - metrics[1]["params"]
    assert record["max_abs_diff"] == 0.0
    assert record["flops_after"] > record["flops_before"]


def test_limits_refuse_beforehand():
    size = sum(p.numel() for p in net().parameters())
    run = evolver(evolution=every(2, limits={"params": size + 1}))
    result = run.run()
    assert (result.applied, result.refused, result.params_to) == (0, 1, size)
    assert all(f"limit of {size + 1:,} parameters" in record.message for record in run.lineage)


def test_next_candidates_are_tried_until_one_is_applied(registered):
    @registered("declines")
    def declines(model, site, context):
        return False, "Not here."

    operators = [{"name": "declines", "sites": ["1", "2"]}, {"name": "deepen", "sites": ["0"]}]
    run = evolver(evolution=every(2, operators=operators, attempts=4))
    run.run()
    first = [(r.operator, r.site, r.status) for r in run.lineage if r.epoch == 2]
    assert first == [("declines", "1", "not_applicable"), ("deepen", "0", "applied")]


def test_a_failing_plugin_does_not_end_the_run(registered):
    @registered("explodes")
    def explodes(model, site, context):
        del model[0][1].running_mean
        raise ZeroDivisionError("integer division or modulo by zero")

    run = evolver(evolution=every(1, operators=[{"name": "explodes", "sites": ["0"]}], attempts=1))
    plain = evolver()
    assert run.run().finished
    plain.run()
    assert [r.status for r in run.lineage] == ["failed"] * 3
    assert "ZeroDivisionError" in run.lineage.records[0].traceback
    for one, other in zip(run.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def registered():
    names = []

    def register(name):
        names.append(name)
        return evolve.operator(name)

    yield register
    for name in names:
        operators.unregister(name)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        value = nn.functional.cross_entropy(outputs, targets)
        return (
            value * float("nan") if len(calls) == 11 else value
        )  # two checks, then 4 steps and 2 evaluations an epoch

    run = evolver(folder=tmp_path / "run", loss=loss)
    with pytest.raises(NonFiniteLossError, match=r"step 6 \(epoch 1\).*The last checkpoint"):
        run.run()
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    resumed = evolver(folder=tmp_path / "run").restore()
    assert resumed.state.step == 4
    assert resumed.run().finished


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_whose_validation_loss_is_no_number_can_be_read(tmp_path, value):
    x, y = torch.randn(32, 4), torch.randint(2, (32,))
    spoiled = x.clone()
    spoiled[0] = value

    def run():
        torch.manual_seed(0)
        return Evolver(
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
            (x, y),
            (spoiled, y),
            training=TrainingConfig(epochs=3, device="cpu"),
            evolution=EvolutionConfig(
                schedule={"name": "every", "options": {"epochs": 1}},
                operators=[{"name": "widen"}],
                probation={"steps": 1},
            ),
            output=tmp_path / "run",
            progress=False,
        )

    first = run()
    first.run()
    assert not math.isfinite(first.lineage.records[0].metrics_before["val_loss"])
    restored = run().restore()
    assert restored.lineage.digest() == first.lineage.digest()
    assert Lineage.read(tmp_path / "run" / "lineage.jsonl")[0].verdict is not None


def test_a_checkpoint_is_named_only_where_there_is_one(tmp_path):
    x, y = torch.randn(32, 4), torch.randint(2, (32,))
    model = nn.Sequential(nn.Linear(4, 2))
    run = Evolver(
        model,
        (x, y),
        (x, y),
        training=TrainingConfig(epochs=4, device="cpu"),
        output=OutputConfig(dir=str(tmp_path / "run"), checkpoint_every=3),
        progress=False,
    )

    def breaks(*arguments):
        if run.state.epoch == 1:
            model[0].weight.data.fill_(float("nan"))

    run.state.optimizer.register_step_post_hook(breaks)
    with pytest.raises(NonFiniteLossError) as caught:
        run.run()
    assert "checkpoint" not in str(caught.value)


def test_unusable_data_is_told():
    with pytest.raises(DataError, match="pair of tensors"):
        Evolver(net(), "nonsense", data())
    with pytest.raises(DataError, match="do not pair up"):
        Evolver(net(), (torch.randn(3, 1, 8, 8), torch.zeros(2)), data())


def test_restoring_without_a_folder_is_told():
    with pytest.raises(EvolveError, match="no run folder"):
        evolver().restore()


def test_lines_where_there_is_no_terminal(capsys):
    evolver(evolution=every(2), progress=True).run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum("+ residual at '0'" in line for line in lines) == 1
    assert not any("\r" in line for line in lines)


def write_config(folder, **changes):
    text = {
        "model": {"name": "small_resnet", "options": {"num_classes": 10, "in_channels": 1, "width": 4}},
        "data": {"name": "digits", "batch_size": 64},
        "optimizer": {"name": "SGD", "options": {"lr": 0.05}},
        "training": {"epochs": 3, "device": "cpu"},
        "evolution": every(1, operators=[{"name": "residual", "sites": ["stage2", "stage3"]}]),
        "output": {"dir": str(folder / "run")},
        **changes,
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(text))  # JSON is YAML
    return file


def test_run_report_and_load(tmp_path):
    result = CliRunner().invoke(app, ["run", str(write_config(tmp_path))])
    assert result.exit_code == 0, result.output
    tail = result.stdout.splitlines()[-5:]
    assert [line.split("  ")[0] for line in tail] == [
        "Held-out accuracy",
        "Mutations",
        "Parameters",
        "Run folder",
        "Next",
    ]
    assert "2 applied, 0 refused" in tail[1]
    model = evolve.load(tmp_path / "run")
    assert model(build_data("digits").val.example(4)).shape == (4, 10)
    report = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert report.exit_code == 0
    assert "2 mutations applied, 0 refused." in report.stdout
    assert "residual at 'stage2'" in report.stdout
    again = CliRunner().invoke(app, ["run", str(tmp_path / "config.yaml")])
    assert again.exit_code == 1
    assert "holds a run already" in again.stderr
    wrong = CliRunner().invoke(app, ["report", str(tmp_path / "none")])
    assert wrong.exit_code == 1
    assert "is not a run folder" in wrong.stderr
    assert CliRunner().invoke(app, ["resume", str(tmp_path / "none")]).exit_code == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_and_resume_on_the_command_line(tmp_path, number, code):
    file = write_config(tmp_path, training={"epochs": 400, "device": "cpu"})
    command = [sys.executable, "-m", "evolve"]
    process = subprocess.Popen(
        [*command, "run", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while (not metrics.exists() or metrics.read_text().count("\n") < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Stopped by a signal" in out
    assert f"evolve resume {tmp_path / 'run'}" in out
    done = metrics.read_text().count("\n")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 400", f"epochs: {done + 2}"))
    resumed = subprocess.run(
        [*command, "resume", str(tmp_path / "run")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert resumed.returncode == 0, resumed.stderr
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == list(range(1, done + 3))


def test_operators_and_schema():
    listed = CliRunner().invoke(app, ["operators"])
    assert listed.exit_code == 0
    for name in operators:
        assert name in listed.stdout
    schema = CliRunner().invoke(app, ["schema"])
    assert json.loads(schema.stdout)["title"] == "RunConfig"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("output.dir=/proc/nowhere/run", "/proc/nowhere"),
        ("optimizer.name=SparseAdam", "SparseAdam takes sparse gradients alone"),
        ("training.device=tpu", "Device 'tpu' is not available"),
        ("model.options.blocks=[]", "A residual network needs at least one block"),
    ],
)
def test_misfits_are_told_before_anything_is_written(tmp_path, override, words):
    file = write_config(tmp_path)
    result = CliRunner().invoke(app, ["run", str(file), override])
    assert result.exit_code == 1, result.output
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]


def test_a_mutation_between_backward_and_step_keeps_the_gradients():
    model, (x, y) = net(), data()
    nn.functional.cross_entropy(model(x), y).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert evolve.mutate(model, "residual", site="0", example_inputs=x)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(found[name], gradient)
