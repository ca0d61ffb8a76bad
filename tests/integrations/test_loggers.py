"""Loggers, read back by the libraries themselves: metrics, losses of steps, mutations, and what a resumed run adds."""

import csv
import json
import sys

import pytest
import torch
from helpers.runs import MUTATION_STEPS, make, stop_after
from helpers.wandb_files import history_of
from helpers.yaml_files import GOOD
from pydantic import ValidationError

from evolve import EvolutionConfig, Evolver, load_config
from evolve.config import ConfigError
from evolve.errors import EvolveError
from evolve.training.loggers import LoggerConfig, find_logger


def logger(name, folder, **options):
    return find_logger(name)(dir=str(folder), loss_every=2, **options)


def stopped_and_resumed(tmp_path, name, stop=10, **options):
    """A run that is killed between two checkpoints, loses some steps, and is resumed; returns the finished Evolver."""
    run = tmp_path / "run"
    first = make(run, callbacks=[logger(name, tmp_path / name, **options)])
    save = first._save
    first._save = lambda: save() if first.state.step <= 6 else None
    stop_after(first, stop).run()
    again = make(run, callbacks=[logger(name, tmp_path / name, **options)]).restore()
    assert again.state.step == 6
    again.run()
    return again


def epochs_of(evolver, key):
    return [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in evolver.history]


def rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_csv(tmp_path):
    evolver = stopped_and_resumed(tmp_path, "csv")
    metrics = rows(tmp_path / "csv" / "metrics.csv")
    assert [(int(row["step"]), float(row["val_loss"])) for row in metrics] == epochs_of(evolver, "val_loss")
    steps = rows(tmp_path / "csv" / "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(2, 19, 2))
    mutations = rows(tmp_path / "csv" / "mutations.csv")
    assert [row["message"] for row in mutations] == [record.message for record in evolver.lineage]
    assert {int(row["step"]) for row in mutations} == set(MUTATION_STEPS)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evolver = stopped_and_resumed(tmp_path, "tensorboard")
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for key in ("train_loss", "val_loss", "val_accuracy", "params", "lr"):
        assert [(e.step, e.value) for e in read.Scalars(key)] == epochs_of(evolver, key)
    assert [e.step for e in read.Scalars("step_loss")] == list(range(2, 19, 2))
    applied = {e.step: e.value for e in read.Scalars("mutations_applied")}
    assert applied == {s: sum(r.step <= s for r in evolver.lineage.applied) for s in MUTATION_STEPS}
    for record in evolver.lineage:
        texts = read.Tensors(f"mutations/{record.index}/text_summary")  # again after the run was resumed
        assert {text.step for text in texts} == {record.step}
        assert record.message in texts[-1].tensor_proto.string_val[0].decode()


def test_a_mutation_that_is_taken_back_is_told(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    probation = {"steps": 3, "metric": "val_loss"}
    evolution = EvolutionConfig.model_validate({**make().evolution.model_dump(), "probation": probation})
    callbacks = [logger("tensorboard", tmp_path / "tb"), logger("csv", tmp_path / "csv")]
    evolver = make(callbacks=callbacks, evolution=evolution)
    failed = []
    forward = evolver.model.forward

    def failing(x):
        if evolver.state.step == 6 and evolver.model.training and not failed:
            failed.append(evolver.state.step)
            raise torch.OutOfMemoryError("made up")
        return forward(x)

    evolver.model.forward = failing
    evolver.run()
    back = [record for record in evolver.lineage if record.status == "rolled_back"]
    assert failed
    assert back
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    for record in back:
        texts = [e.tensor_proto.string_val[0].decode() for e in read.Tensors(f"mutations/{record.index}/text_summary")]
        assert texts[-1].startswith("rolled back: ")
    assert [e.step for e in read.Scalars("step_loss")] == list(range(2, 19, 2))
    assert [int(row["step"]) for row in rows(tmp_path / "csv" / "steps.csv")] == list(range(2, 19, 2))
    assert [r["status"] for r in rows(tmp_path / "csv" / "mutations.csv")] == [r.status for r in evolver.lineage]


def test_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to be made
    uri = (tmp_path / "mlruns").as_uri()
    evolver = stopped_and_resumed(tmp_path, "mlflow", uri=uri, run_name="grown")
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("evolve").experiment_id])
    assert (run.info.run_name, run.info.status) == ("grown", "FINISHED")
    for key in ("train_loss", "val_loss", "params"):
        last = {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        assert sorted(last.items()) == epochs_of(evolver, key)
    losses = {m.step for m in client.get_metric_history(run.info.run_id, "step_loss")}
    assert losses == set(range(2, 19, 2))
    for record in evolver.lineage:
        assert record.message[:200] in run.data.tags[f"mutation.{record.index:03d}"]
    assert run.data.metrics["mutations_applied"] == len(evolver.lineage.applied)
    lines = (tmp_path / client.download_artifacts(run.info.run_id, "lineage.jsonl")).read_text().splitlines()
    assert [json.loads(line)["message"] for line in lines] == [record.message for record in evolver.lineage]


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    evolver = stopped_and_resumed(tmp_path, "wandb")
    files = sorted((tmp_path / "wandb").rglob("*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    ids, lines = set(), []
    for file in files:
        found = history_of(file)
        ids, lines = ids | found[0], lines + found[1]
    assert len(ids) == 1
    for key in ("train_loss", "val_loss", "params"):
        assert sorted({line["step"]: line[key] for line in lines if key in line}.items()) == epochs_of(evolver, key)
    assert {line["step"] for line in lines if "step_loss" in line} == set(range(2, 19, 2))
    told = [line["mutation"] for line in lines if "mutation" in line]
    assert all(any(record.message in text for text in told) for record in evolver.lineage)


def written(tmp_path, loggers, text=GOOD):
    file = tmp_path / "run.yaml"
    file.write_text(text.replace("RUN", str(tmp_path / "run")) + f"loggers: {loggers}\n")
    return file


def test_loggers_of_a_configuration_write_into_the_run_folder(tmp_path):
    pytest.importorskip("tensorboard")
    file = written(tmp_path, "[csv, {name: tensorboard, options: {loss_every: 0}}]")
    evolver = Evolver.from_config(load_config(file, ["training.epochs=null", "training.steps=2"]))
    evolver.run()
    assert {path.name for path in (tmp_path / "run" / "csv").iterdir()} == {"metrics.csv", "steps.csv", "mutations.csv"}
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert events.stat().st_size > 100
    assert "name: tensorboard" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("loggers", "words"),
    [
        ("[csvv]", ["loggers[0].name", "Unknown logger 'csvv'", "Did you mean 'csv'", "mlflow, tensorboard, wandb"]),
        ("[{name: csv, options: {los_every: 3}}]", ["loggers[0].options.los_every", "Did you mean 'loss_every'"]),
        ("[{name: csv, options: {loss_every: -3}}]", ["loggers[0].options.loss_every", "0 or more; found -3"]),
        ("['no.such.module:Logger']", ["loggers[0].name", "cannot import"]),
    ],
)
def test_faults_name_the_key(tmp_path, loggers, words):
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, loggers))
    assert [word for word in words if word not in str(caught.value)] == []


def test_without_a_run_folder_a_logger_needs_one_of_its_own(tmp_path):
    text = GOOD.replace("output:\n  dir: RUN\n", "")
    with pytest.raises(ConfigError, match=r"loggers\[0\].options.dir: it writes to the run folder, and there is none"):
        load_config(written(tmp_path, "[csv]", text))
    load_config(written(tmp_path, f"[{{name: csv, options: {{dir: {tmp_path}}}}}]", text))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_a_fault_before_the_run(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"loggers\[0\].name: .*Run: pip install {name}"):
        load_config(written(tmp_path, f"[{name}]"))


def test_in_a_folder_that_is_not_trusted_no_logger_leads_out_of_it():
    def read(value):
        return LoggerConfig.model_validate(value, context={"trusted": False})

    assert read("csv").name == "csv"
    with pytest.raises(ValidationError, match="If you trust this one"):
        read({"name": "csv", "options": {"dir": "/elsewhere"}})
    with pytest.raises(ValidationError, match="If you trust this one"):
        read("no.such.module:Logger")


def test_a_link_in_the_place_of_a_loggers_folder_is_refused(tmp_path):
    (tmp_path / "csv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EvolveError, match="is a link"):
        LoggerConfig(name="csv").build(tmp_path)
