"""`evolve run FILE --seeds 0..4`: each seed is the run it would be alone, and the summary is of all of them."""

import json
from statistics import fmean, stdev

import pytest
from helpers.cli_runs import invoke, metrics, same_end, succeeds, write_config

from evolve.config import ConfigError
from evolve.evolver.seeds import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("0,3,7", [0, 3, 7]), ("5", [5]), ("1..2, 9", [1, 2, 9])]
)
def test_seeds_as_they_are_written(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4..1", "-1", "1,,2", "0..99999999", "1.5", "2147483648", "1,1", "0..2,1"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def test_each_seed_is_the_run_it_would_be_alone(tmp_path):
    evolution = {"schedule": {"name": "at", "options": {"epochs": [1]}}, "operators": ["widen"]}
    file, run = write_config(tmp_path, evolution=evolution), tmp_path / "run"
    told = succeeds("run", file, "--seeds", "1,3")
    assert sorted(path.name for path in run.iterdir()) == ["seed-1", "seed-3", "summary.json"]
    succeeds("run", file, "training.seed=3", f"output.dir={tmp_path / 'alone'}")
    assert same_end(run / "seed-3", tmp_path / "alone")
    assert metrics(run / "seed-1")[0]["val_loss"] != metrics(run / "seed-3")[0]["val_loss"]

    summary = summary_of(run)
    lines = [metrics(run / f"seed-{seed}") for seed in (1, 3)]
    best = [min(line["val_loss"] for line in one) for one in lines]
    assert (summary["metric"], summary["mode"], summary["failed"]) == ("val_loss", "min", {})
    assert [row["seed"] for row in summary["runs"]] == [1, 3]
    assert [row["best"] for row in summary["runs"]] == best
    assert [row["params"] for row in summary["runs"]] == [one[-1]["params"] for one in lines]
    assert [(row["mutations"], row["finished"]) for row in summary["runs"]] == [(1, True), (1, True)]
    assert summary["mean"]["best"] == pytest.approx(fmean(best))
    assert summary["std"]["best"] == pytest.approx(stdev(best))
    assert summary["mean"]["val_loss"] == pytest.approx(fmean(one[-1]["val_loss"] for one in lines))
    assert (summary["mean"]["mutations"], summary["std"]["mutations"]) == (1, 0)
    assert f"{'mean':>6}{fmean(best):>14.4g}" in told
    assert f"{'± std':>6}{stdev(best):>14.4g}" in told
    assert all(len(line) <= 80 for line in told.splitlines() if str(tmp_path) not in line)


def test_finished_seeds_are_not_run_again(tmp_path):
    file, run = write_config(tmp_path), tmp_path / "run"
    succeeds("run", file, "--seeds", "0..1")
    refused = invoke("run", file, "--seeds", "1..2")
    assert refused.exit_code == 1
    assert "There are runs already" in refused.output
    assert "seed-1" in refused.output
    assert not (run / "seed-2").exists()
    before = {path: path.stat().st_mtime_ns for path in (run / "seed-1").rglob("*")}
    told = succeeds("run", file, "--seeds", "0..2", "--resume", "auto")
    assert told.count("It is finished already.") == 2
    assert {path: path.stat().st_mtime_ns for path in (run / "seed-1").rglob("*")} == before
    assert [row["seed"] for row in summary_of(run)["runs"]] == [0, 1, 2]
    other = invoke("run", file, "--seeds", "0..2", "--resume", "auto", "data.batch_size=4")
    assert other.exit_code == 2
    assert "data.batch_size: cannot change" in other.output
    rows = succeeds("report", run).splitlines()
    assert [row.split()[0] for row in rows] == ["run", "seed-0", "seed-1", "seed-2"]
    longer = succeeds("run", file, "--seeds", "0..2", "--resume", "auto", "training.epochs=3")
    assert longer.count("Going on with") == 3
    assert [row["epochs"] for row in summary_of(run)["runs"]] == [3, 3, 3]


def test_a_seed_that_fails_does_not_stop_the_others(tmp_path):
    """The learning rate is so high that every run ends in NaN; what each came to is told."""
    file = write_config(tmp_path, optimizer={"name": "SGD", "options": {"lr": 1e30}})
    told = invoke("run", file, "--seeds", "0..1")
    assert told.exit_code == 1
    summary = summary_of(tmp_path / "run")
    assert sorted(summary["failed"]) == ["0", "1"]
    assert summary["runs"] == []
    assert summary["mean"]["best"] is None
    assert "Seed 1 failed: " in told.output


def test_what_does_not_go_with_seeds(tmp_path):
    file, run = write_config(tmp_path), tmp_path / "run"
    told = invoke("run", file, "--seeds", "0..1", "training.seed=4", "output.dir=null")
    assert told.exit_code == 2
    assert "output.dir: is null; --seeds needs a folder" in told.output
    assert "training.seed: --seeds sets it" in told.output
    succeeds("run", file)
    told = invoke("run", file, "--seeds", "0..1")
    assert told.exit_code == 1
    assert "holds a run of its own" in told.output
    assert not (run / "seed-0").exists()
