"""A whole search: the same each time, the same after a stop, and what it finds loads like any other model."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from helpers.cli_runs import invoke, succeeds
from helpers.small_search import history, search_config

import evolve
from evolve.errors import EvolveError
from evolve.population.archive import Archive
from evolve.population.config import load_search
from evolve.population.events import Evaluated
from evolve.population.folder import ARCHIVE
from evolve.population.starting import begin, go_on, parts_of


def run(file, *overrides, folder):
    parts = parts_of(load_search(file, [f"output.dir={folder}", *overrides]))
    search = begin(parts, folder)
    assert search.run()
    return search


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search from the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    printed = succeeds("search", search_config(folder))
    return folder, printed


def test_one_seed_is_one_search(tmp_path, searched):
    folder, _ = searched
    run(search_config(tmp_path), folder=tmp_path / "again")
    assert history(tmp_path / "again") == history(folder / "search")
    run(search_config(tmp_path), "training.seed=1", folder=tmp_path / "other")
    assert history(tmp_path / "other") != history(folder / "search")


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not(tmp_path, searched):
    folder, _ = searched
    file = search_config(tmp_path)
    parts = parts_of(load_search(file))

    def stop(event):
        if isinstance(event, Evaluated) and event.search.evaluations in (2, 5):
            event.search.stop()

    search = begin(parts, tmp_path / "search", callbacks=[stop])
    assert not search.run()
    assert search.evaluations == 2
    search = go_on(parts_of(load_search(file)), tmp_path / "search", callbacks=[stop])
    assert not search.run()
    printed = succeeds("resume", tmp_path / "search")
    assert "Going on with" in printed
    assert history(tmp_path / "search") == history(folder / "search")


def test_a_trunk_that_was_stopped_in_a_round_grows_as_if_it_had_not(tmp_path):
    file = search_config(tmp_path)
    trunk = ["search.algorithm={name: trunk, options: {}}", "search.again=0"]
    run(file, *trunk, folder=tmp_path / "whole")

    def stop(event):
        if isinstance(event, Evaluated) and event.search.evaluations == 2:  # the child is back, the trunk is not
            event.search.stop()

    parts = parts_of(load_search(file, [f"output.dir={tmp_path / 'stopped'}", *trunk]))
    assert not begin(parts, tmp_path / "stopped", callbacks=[stop]).run()
    search = go_on(parts, tmp_path / "stopped")
    assert search.run()
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert max(each.evaluations for each in search.planner.individuals.values()) > 1


def test_a_finished_search_goes_on_for_longer(tmp_path, searched):
    file = search_config(tmp_path)
    succeeds("search", file)
    succeeds("resume", tmp_path / "search", "search.budget.evaluations=11")
    with Archive.read(tmp_path / "search" / ARCHIVE) as archive:
        counts = archive.counts()
    assert counts["done"] + counts.get("failed", 0) == 11
    refused = invoke("resume", tmp_path / "search", "search.regions=2")
    assert refused.exit_code == 2
    assert "search.regions: may not change in a search that goes on" in refused.output


def test_a_killed_search_loses_nothing(tmp_path, searched):
    folder, _ = searched
    file = search_config(tmp_path)
    command = [sys.executable, "-m", "evolve", "search", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(EvolveError):  # it is not there yet, or is being made just now
            if len(history(tmp_path / "search")) >= 3:
                break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = history(tmp_path / "search")
    succeeds("resume", tmp_path / "search")
    after = history(tmp_path / "search")
    assert after[: len(before)] == before
    assert after == history(folder / "search")


def test_a_search_that_has_just_begun_is_told_from_none(tmp_path):
    (tmp_path / ARCHIVE).touch()  # as it is until the tables are made
    with pytest.raises(EvolveError, match="has written nothing yet"):
        Archive.read(tmp_path / ARCHIVE)


def test_several_processes_come_to_as_many_evaluations(tmp_path):
    file = search_config(tmp_path, executor={"name": "processes", "options": {"workers": 2}})
    succeeds("search", file)
    with Archive.read(tmp_path / "search" / ARCHIVE) as archive:
        counts = archive.counts()
        workers = {evaluation.worker for evaluation, _ in archive.finished()}
    assert counts["done"] == 8
    assert workers == {0, 1}
    assert evolve.load(tmp_path / "search")


def test_what_is_found_loads_and_trains_on(searched):
    folder, printed = searched
    run = folder / "search"
    best = json.loads((run / "models" / "index.json").read_text())
    assert f"evolve.load('{run / 'models' / str(best[0])}')" in printed
    with Archive.read(run / ARCHIVE) as archive:
        params = archive.metrics(best[0])["params"]
    model, same = evolve.load(run), evolve.load(run / "models" / str(best[0]))
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), same.parameters(), strict=True))
    assert "Mutations" in succeeds("resume", run / "models" / str(best[0]))


def test_status_and_report_tell_of_it(searched):
    folder, _ = searched
    status = succeeds("search", "--status", folder / "search")
    assert "100% of 8 evaluations" in status
    assert "8 evaluated" in status
    report = succeeds("report", folder / "search")
    assert "Family of the best" in report
    assert "What each operator paid" in report


def test_another_search_is_not_written_over(searched):
    folder, _ = searched
    refused = invoke("search", folder / "search.yaml")
    assert refused.exit_code == 1
    assert "holds a search already. Go on with it (`evolve resume" in refused.output
    assert "finished" not in succeeds("search", folder / "search.yaml", "--resume", "auto").lower()


def test_python_takes_objects(tmp_path):
    torch.manual_seed(0)
    inputs, targets = torch.randn(48, 6), torch.randint(0, 3, (48,))
    parts = [(inputs[i : i + 16], targets[i : i + 16]) for i in (0, 16, 32)]
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    before = [parameter.clone() for parameter in model.parameters()]
    found = evolve.search(
        model,
        tuple(parts),
        operators=["widen", {"name": "narrow", "options": {"factor": 0.5}}],
        budget=6,
        population=2,
        training=evolve.TrainingConfig(steps=2, device="cpu"),
        batch_size=8,
        output=tmp_path / "mine",
        again=0.4,
    )
    assert found.finished
    assert found.evaluations == 6
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all("test_accuracy" in one.metrics for one in (*found.best, found.first))
    assert evolve.load(found.best[0].folder, model)(inputs).shape == (48, 3)
    with pytest.raises(EvolveError, match="holds a search already"):
        evolve.search(model, tuple(parts), operators=["widen"], budget=6, output=tmp_path / "mine")
    with pytest.raises(EvolveError, match="nothing is pickled"):
        evolve.search(
            model, tuple(parts), operators=["widen"], budget=6, output=tmp_path / "other", executor="processes"
        )


def test_several_objectives_give_a_front(tmp_path):
    file = search_config(
        tmp_path, algorithm="nsga2", objectives=[{"metric": "val_accuracy"}, {"metric": "params"}], again=0.0
    )
    succeeds("search", file)
    with Archive.read(tmp_path / "search" / ARCHIVE) as archive:
        found = {i.id: archive.metrics(i.id) for e, i in archive.finished() if e.status == "done"}
    front = json.loads((tmp_path / "search" / "models" / "index.json").read_text())

    def beats(one, other):
        a, b = found[one], found[other]
        no_worse = a["val_accuracy"] >= b["val_accuracy"] and a["params"] <= b["params"]
        return no_worse and (a["val_accuracy"], a["params"]) != (b["val_accuracy"], b["params"])

    assert front
    for each in found:
        assert any(beats(one, each) for one in found) != (
            each in front
            or any(
                (found[f]["val_accuracy"], found[f]["params"]) == (found[each]["val_accuracy"], found[each]["params"])
                for f in front
            )
        )
    values = [found[each]["val_accuracy"] for each in front]
    assert values == sorted(values, reverse=True)


def test_python_tells_of_faults_in_a_line(tmp_path):
    more = {"operators": ["widen"], "budget": 3, "output": tmp_path / "none"}
    with pytest.raises(EvolveError, match="the option 'hidden' is missing"):
        evolve.search("mlp", "digits", **more)
    with pytest.raises(EvolveError, match="Did you mean 'limits'"):
        evolve.search("small_resnet", "digits", limts={}, **more)
    with pytest.raises(EvolveError, match="Did you mean 'digits'"):
        evolve.search({"name": "small_resnet", "options": {"num_classes": 10, "in_channels": 1}}, "digit", **more)
    with pytest.raises(EvolveError, match="'val_f1' is not measured"):
        evolve.search(
            {"name": "small_resnet", "options": {"num_classes": 10, "in_channels": 1}},
            "digits",
            objectives=["val_f1"],
            **more,
        )
    assert not (tmp_path / "none").exists()


def test_a_first_model_that_fails_ends_the_search(tmp_path):
    refused = invoke("search", search_config(tmp_path, timeout=1e-9))
    assert refused.exit_code == 1
    assert "The first model could not be trained, and all others grow out of it: its 1e-09 seconds" in refused.output
    again = invoke("resume", tmp_path / "search")
    assert again.exit_code == 1
    assert "The first model could not be trained" in again.output


def test_the_last_training_is_longer(tmp_path):
    folder = tmp_path / "search"
    run(search_config(tmp_path), "search.finish=3", "search.again=0.4", folder=folder)
    with Archive.read(folder / ARCHIVE) as archive:
        done = [each for each, _ in archive.finished() if each.status == "done" and each.individual]
    steps = {kind: {each.steps for each in done if each.kind == kind} for kind in ("new", "again")}
    (once,) = steps["new"]
    assert steps["again"] == {3 * once}
