"""Trained longer with `evolve resume RUN training.epochs=...`, and `evolve run FILE --resume auto`."""

import shutil
import warnings

import pytest
import yaml
from helpers.cli_runs import invoke, metrics, same_end, succeeds, write_config
from helpers.small_runs import evolver as small_evolver

from evolve.evolver.changes import changes

EVOLUTION = {"schedule": {"name": "at", "options": {"epochs": [1, 3]}}, "operators": ["widen"]}
SCHEDULES = [
    {"name": "CosineAnnealingLR"},
    {"name": "wsd", "warmup": 0.25, "options": {"decay": 0.5}},
    {"name": "OneCycleLR", "options": {"max_lr": 0.2}},
    {"name": "CosineAnnealingLR", "interval": "epoch"},
    {"name": "ExponentialLR", "interval": "epoch", "options": {"gamma": 0.5}},
]


@pytest.mark.parametrize("budgets", [({"epochs": 2}, {"epochs": 4}), ({"steps": 7}, {"steps": 14})], ids=str)
def test_a_finished_run_that_goes_on_is_one_that_was_longer(tmp_path, budgets):
    short, long = ({"device": "cpu", **budget} for budget in budgets)
    run, whole = tmp_path / "run", tmp_path / "whole"
    if "steps" in long:  # whose partial epoch is measured at the end of the short run
        assert len(metrics_after(tmp_path, short, {})) == 2
    else:
        metrics_after(tmp_path, short, {"evolution": EVOLUTION})
    ((key, amount),) = budgets[1].items()
    told = succeeds("resume", run, f"training.{key}={amount}")
    assert f"Going on with {run} at step" in told
    assert f"- training.{key}: {budgets[0][key]} → {amount}" in told
    assert yaml.safe_load((run / "config.yaml").read_text())["training"][key] == amount
    evolution = {} if "steps" in long else {"evolution": EVOLUTION}
    succeeds("run", write_config(tmp_path, training=long, output={"dir": str(whole)}, **evolution))
    if "steps" in long:
        assert [line["step"] for line in metrics(run)] == [4, 7, 8, 12, 14]
        assert metrics(run)[-1]["val_loss"] == metrics(whole)[-1]["val_loss"]
    else:
        assert same_end(run, whole)
        assert metrics(run)[-1]["params"] > metrics(run)[0]["params"]


def metrics_after(folder, training, changes):
    succeeds("run", write_config(folder, training=training, **changes))
    return metrics(folder / "run")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s['name']} {s.get('interval', '')}")
def test_the_schedule_is_laid_over_the_new_budget(tmp_path, schedule):
    """Learning rates after the resume are those of a run that had the longer budget from the beginning."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    succeeds("run", write_config(tmp_path, lr_schedule=schedule))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        succeeds("resume", run, "training.epochs=5")
    succeeds(
        "run",
        write_config(
            tmp_path, lr_schedule=schedule, training={"epochs": 5, "device": "cpu"}, output={"dir": str(whole)}
        ),
    )
    rates = [[line["lr"] for line in metrics(folder)] for folder in (run, whole)]
    assert rates[0][2:] == rates[1][2:]
    assert len(rates[0]) == 5
    assert len({round(rate, 9) for rate in rates[0][2:]}) == 3


def test_seconds_and_other_units(tmp_path):
    """A run of steps goes on as one of seconds: its schedule stands where the seconds that are spent say."""
    run = tmp_path / "run"
    succeeds("run", write_config(tmp_path, lr_schedule={"name": "CosineAnnealingLR"}))
    assert metrics(run)[-1]["lr"] < 1e-6
    succeeds("resume", run, "training.seconds=1.5")
    lines = metrics(run)
    assert lines[-1]["progress"] == 1
    assert lines[1]["progress"] < 1
    assert lines[2]["lr"] > 0.01  # it rose again: little of the 1.5 s was spent


def test_a_plateau_goes_on(tmp_path):
    """It remembers the two epochs without progress before it was stopped: the third lowers the rate."""
    options = {"patience": 2, "threshold": 1e9}  # nothing is good enough
    schedule = {"name": "ReduceLROnPlateau", "interval": "epoch", "options": options}
    succeeds("run", write_config(tmp_path, lr_schedule=schedule))
    succeeds("resume", tmp_path / "run", "training.epochs=4")
    assert [line["lr"] for line in metrics(tmp_path / "run")] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_a_run_that_ran_out_of_patience_goes_on_with_more(tmp_path):
    training = {"epochs": 9, "device": "cpu", "patience": 1}
    succeeds("run", write_config(tmp_path, training=training, optimizer={"name": "SGD", "options": {"lr": 0.0}}))
    run = tmp_path / "run"
    assert len(metrics(run)) == 2
    assert "Stopped early: val_loss not better than" in succeeds("resume", run)
    assert len(metrics(run)) == 2
    succeeds("resume", run, "training.patience=3")
    assert len(metrics(run)) == 4


FIXED = {
    "model.options.hidden=[5]": "model.options.hidden: cannot change in a run that goes on: it was [4], here it is [5]",
    "data.batch_size=4": "middle of those batches",
    "optimizer.name=RMSprop": "optimizer.name: cannot change",
    "optimizer.options.lr=0.2": "learning rates and all",
    "lr_schedule=CosineAnnealingLR": "Only its length changes",
    "training.seed=1": "it was 0, here it is 1",
    "training.ema=0.9": "it was null, here it is 0.9",
    "training.keep_best=true": "it was false, here it is true",
    "task=regression": "task.name: cannot change",
    "evolution.policy=random": "The policy remembers",
    "evolution.schedule=null": "The schedule remembers",
}
FREE = [
    "training.device=cpu", "training.patience=5", "output.keep=1", "training.grad_clip=1.0", "loggers=[csv]",
    "evolution.schedule.options.epochs=[2]", "evolution.limits.params=9000", "data.workers=0", "training.flops=1e9",
]  # fmt: skip


def test_what_may_change_and_what_may_not(tmp_path):
    succeeds("run", write_config(tmp_path, evolution=EVOLUTION))
    run = tmp_path / "run"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*"))
    for override, words in FIXED.items():
        told = invoke("resume", run, override)
        assert told.exit_code == 2, override
        assert "command line: " in told.output
        assert words in told.output, told.output
    every = invoke("resume", run, *FIXED)
    assert "faults in command line" in every.output
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
    told = succeeds("resume", run, *FREE)
    assert "- output.keep: 2 → 1" in told
    assert "- training.epochs: 2 → null" in told
    assert (run / "csv").is_dir()


def test_a_file_that_was_edited_is_held_to_the_same_rules(tmp_path):
    succeeds("run", write_config(tmp_path))
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 17"))
    told = invoke("resume", tmp_path / "run")
    assert told.exit_code == 2
    assert f"{file}: training.seed: cannot change" in told.output


def test_a_key_that_an_older_version_did_not_know_is_no_change():
    assert changes("a: {b: 1}", "a: {b: 1, c: 2}\nd: 3") == []
    (change,) = changes("model: {options: {}}", "model: {options: {width: 3}}")
    assert (change.path, change.before, change.after) == (("model", "options", "width"), None, 3)


def test_resume_auto_begins_goes_on_and_ends(tmp_path):
    file, run = write_config(tmp_path), tmp_path / "run"
    assert "Going on" not in succeeds("run", file, "--resume", "auto")
    assert len(metrics(run)) == 2
    told = succeeds("run", file, "--resume", "auto", "training.epochs=4")
    assert "- training.epochs: 2 → 4" in told
    succeeds("run", write_config(tmp_path, training={"epochs": 4, "device": "cpu"}, output={"dir": f"{run}2"}))
    assert same_end(run, tmp_path / "run2")
    refused = invoke("run", file)
    assert refused.exit_code == 1
    assert "holds a run already" in refused.output
    again = succeeds("run", file, "--resume", "auto", "training.epochs=4")
    assert "100.0% of 4 epochs" in again
    assert "Its budget is spent, so nothing is trained." in again
    assert len(metrics(run)) == 4


def test_resume_auto_refuses_another_run(tmp_path):
    file, run = write_config(tmp_path), tmp_path / "run"
    succeeds("run", file)
    told = invoke("run", file, "--resume", "auto", "training.seed=4")
    assert told.exit_code == 2
    assert "command line: training.seed: cannot change in a run that goes on" in told.output
    other = write_config(tmp_path, name="other.yaml", optimizer="AdamW")
    told = invoke("run", other, "--resume", "auto")
    assert f"{other}: optimizer.name: cannot change" in told.output
    assert "output.dir: is null" in invoke("run", file, "--resume", "auto", "output.dir=null").output
    assert len(metrics(run)) == 2


def test_resume_auto_of_a_run_that_was_stopped_before_its_first_checkpoint(tmp_path):
    file, run = write_config(tmp_path), tmp_path / "run"
    succeeds("run", file)
    assert "Going on with" in succeeds("run", file, "--resume", "auto", "output.overwrite=true")
    shutil.rmtree(run / "checkpoints")
    refused = invoke("run", file, "--resume", "auto")
    assert refused.exit_code == 1
    assert "but no checkpoint of it" in refused.output
    assert "Going on with" not in succeeds("run", file, "--resume", "auto", "output.overwrite=true")
    assert len(metrics(run)) == 2
    shutil.rmtree(run / "checkpoints")
    for name in ("lineage.jsonl", "metrics.jsonl"):
        (run / name).write_text("")
    told = succeeds("resume", run, "training.epochs=3", "data.batch_size=4")  # nothing was trained: anything may change
    assert "starts from the beginning" in told
    assert [line["step"] for line in metrics(run)] == [8, 16, 24]


def test_in_python_a_longer_budget_is_laid_over_too(tmp_path):
    small_evolver(tmp_path / "run", epochs=2).run()
    going = small_evolver(tmp_path / "run", epochs=4).restore()
    assert going.state.progress == 0.5
    going.run()
    whole = small_evolver(epochs=4)
    whole.run()
    assert [line["lr"] for line in going.history[2:]] == [line["lr"] for line in whole.history[2:]]
    assert [line["progress"] for line in going.history] == [0.25, 0.5, 0.75, 1.0]


def test_the_end_of_a_run_says_how_it_went(tmp_path):
    training = {"epochs": 9, "device": "cpu", "patience": 2, "monitor": {"metric": "val_f1"}}
    task = {"name": "classification", "metrics": ["accuracy", "f1"]}
    optimizer = {"name": "SGD", "options": {"lr": 0.0}}
    told = succeeds("run", write_config(tmp_path, training=training, task=task, optimizer=optimizer))
    first = metrics(tmp_path / "run")[0]["val_f1"]
    assert f"Stopped early: val_f1 not better than {first:.4g} for 2 epochs." in told
    assert f"Best val_f1         {first:.4g} (epoch 1)" in told
    then, now = (metrics(tmp_path / "run")[epoch]["val_accuracy"] for epoch in (0, 2))
    assert f"Held-out accuracy   {then:.2%} (epoch 1), {now:.2%} (epoch 3)" in told
    assert len(metrics(tmp_path / "run")) == 3
