"""What a search does where something is in its way, and what is left of it for the next one."""

import json

import pytest
import torch
from helpers.cli_runs import invoke, succeeds
from helpers.small_search import CONFIG, history, search_config

import evolve
from evolve.config.loader import load_yaml
from evolve.errors import EvolveError, NoRoomError
from evolve.population.archive import Archive
from evolve.population.blobs import BlobFolder
from evolve.population.config import load_search
from evolve.population.executors import InProcess
from evolve.population.folder import ARCHIVE, is_search
from evolve.population.folder import CONFIG as SAVED
from evolve.population.jobs import Answer, Setup
from evolve.population.starting import begin, go_on, parts_of
from evolve.population.worker import create_evaluator
from evolve.training.lock import RunLock
from evolve.training.lr_schedule import LrScheduleConfig


@pytest.fixture
def full(monkeypatch):
    """A disk without room for the fourth child's weights; `undo` makes room."""
    count, write = [], BlobFolder.write

    def fail(self, content):
        count.append(1)
        if len(count) == 4:
            raise NoRoomError("No space left. Make room, and resume.")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(BlobFolder, "write", fail)
        yield


def test_a_full_disk_ends_the_search_and_no_child(tmp_path, full):
    stopped = invoke("search", search_config(tmp_path))
    assert stopped.exit_code == 1
    assert "Error: No space left. Make room, and resume." in stopped.output
    succeeds("resume", tmp_path / "search")
    (tmp_path / "whole").mkdir()
    succeeds("search", search_config(tmp_path / "whole"))
    assert history(tmp_path / "search") == history(tmp_path / "whole" / "search")


def test_lost_attempts_count_on_after_a_resume(tmp_path, full, monkeypatch):
    file = search_config(tmp_path)
    invoke("search", file)
    with Archive.open(tmp_path / "search" / ARCHIVE) as archive:
        ((evaluation, job, attempts),) = archive.out()
        assert attempts == 1
        archive.lost(evaluation, 0, "gone")
        assert archive.lost(evaluation, 0, "gone") == 2
    wait = InProcess.wait

    def lose(self, timeout=None):
        monkeypatch.setattr(InProcess, "wait", wait)
        self._message = None
        return [Answer(0, None, "gone again")]

    monkeypatch.setattr(InProcess, "wait", lose)
    go_on(parts_of(load_search(file)), tmp_path / "search").run()
    with Archive.read(tmp_path / "search" / ARCHIVE) as archive:
        (failed,) = [e for e, _ in archive.finished() if e.status == "failed"]
    assert failed.individual == job.individual.id
    assert failed.ended == "its worker was lost 3 times, at last: gone again"


def test_another_process_at_it_is_left_alone(tmp_path):
    file = search_config(tmp_path)
    succeeds("search", file)
    done = history(tmp_path / "search")
    with RunLock(tmp_path / "search"):
        for words in (("search", file, "output.overwrite=true"), ("resume", tmp_path / "search", "search.best=2")):
            refused = invoke(*words)
            assert refused.exit_code == 1
            assert "is in use by another run" in refused.output
    assert history(tmp_path / "search") == done
    assert load_yaml(tmp_path / "search" / SAVED)[0]["search"]["best"] == 8


def test_a_longer_budget_holds_and_what_was_trained_on_stays(tmp_path):
    file, run = search_config(tmp_path, budget={"evaluations": 3}), tmp_path / "search"
    succeeds("search", file)
    best = json.loads((run / "models" / "index.json").read_text())[0]
    assert "mutations applied" in succeeds("report", run / "models" / str(best))
    succeeds("resume", run / "models" / str(best), "training.steps=6")
    trained = evolve.load(run / "models" / str(best), which="last").state_dict()
    succeeds("resume", run, "search.budget.evaluations=5")
    assert load_yaml(run / SAVED)[0]["search"]["budget"]["evaluations"] == 5
    succeeds("resume", run)
    assert len(history(run)) == 5
    kept = evolve.load(run / "models" / str(best), which="last").state_dict()
    assert all(torch.equal(kept[name], trained[name]) for name in trained)


def test_an_archive_that_was_never_begun_is_no_search(tmp_path):
    file = search_config(tmp_path)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / ARCHIVE).touch()
    assert not is_search(tmp_path / "search")
    begin(parts_of(load_search(file)), tmp_path / "search")
    assert is_search(tmp_path / "search")


def test_what_no_child_can_be_trained_by_is_refused_for_objects_too(tmp_path):
    model, part = torch.nn.Linear(4, 2), (torch.randn(8, 4), torch.randint(2, (8,)))
    with pytest.raises(EvolveError, match=r"training\.patience: a child is trained for its whole budget") as error:
        evolve.search(
            model,
            (part, part),
            operators=["deepen"],
            budget=2,
            training=evolve.TrainingConfig(epochs=1, patience=2),
            lr_schedule=LrScheduleConfig(name="ReduceLROnPlateau", interval="epoch"),
            output=tmp_path / "search",
        )
    assert "lr_schedule.name: is of no use in a child's short training" in str(error.value)
    assert not (tmp_path / "search").exists()


def test_a_worker_tells_what_it_cannot_find():
    config = {**CONFIG, "search": {**CONFIG["search"], "operators": ["of_the_script"]}}
    space = {"name": "networks", "options": {"operators": ["of_the_script"]}}
    with pytest.raises(EvolveError, match=r"A worker lacks what this process has: .*of_the_script") as error:
        create_evaluator(Setup(space, config))
    assert "listed in `plugins`" in str(error.value)


def test_plugins_of_python_reach_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "grown_operators.py").write_text(
        "from evolve.operators.base import operators\n"
        "from evolve.operators.widen import Widen\n\n\n"
        "@operators.register('grow_as_i_like')\n"
        "class Grow(Widen):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sections = {name: CONFIG[name] for name in ("model", "data")}
    found = evolve.search(
        **sections,
        operators=["grow_as_i_like"],
        budget=2,
        training=evolve.TrainingConfig(steps=1, device="cpu"),
        plugins=["grown_operators"],
        output=tmp_path / "search",
    )
    assert found.finished
    assert load_yaml(tmp_path / "search" / SAVED)[0]["plugins"] == ["grown_operators"]


def test_weights_that_nobody_has_do_not_pile_up(tmp_path):
    succeeds("search", search_config(tmp_path, again=0.6, budget={"evaluations": 10}))
    with Archive.read(tmp_path / "search" / ARCHIVE) as archive:
        held = archive.held()
        again = [e for e, _ in archive.finished() if e.kind == "again"]
    assert len(again) == 6
    assert {file.stem for file in (tmp_path / "search" / "weights").glob("*.safetensors")} == held


def test_a_file_that_is_no_yaml_is_said_to_be_none(tmp_path):
    succeeds("search", search_config(tmp_path, budget={"evaluations": 1}))
    (tmp_path / "search" / SAVED).write_text("model: {")
    refused = invoke("resume", tmp_path / "search")
    assert refused.exit_code == 2
    assert "begun in Python" not in refused.output
