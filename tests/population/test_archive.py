"""An archive holds what was acknowledged, whatever happens to who writes it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from evolve.errors import EvolveError
from evolve.population.archive import Archive
from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.planner import Job


def job(id, parents=(), edits=(), code=None, seed=0, why="because", key=""):
    return Job(Individual(id, parents, edits, code, key), Proposal(parents, edits, code, why=why), seed)


def again(individual, seed=0, rung=0):
    return Job(individual, Proposal(again=individual.id, why="once more"), seed, rung)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive.sqlite"


@pytest.fixture
def archive(path):
    with Archive.create(path, {"config": {"a": [1, None]}, "seed": 3}) as archive:
        yield archive


def test_a_child_from_proposal_to_end(archive, path):
    edits = (Edit("widen", "2"), Edit("deepen"))
    first = archive.propose(job(0, code={"n": 1}, seed=5), {"moved": 1})
    second = archive.propose(job(1, (0,), edits, why="won", key="early"), {"moved": 2})
    assert (first, second) == (1, 2)
    assert archive.state() == {"moved": 2}
    made = Individual(1, (0,), edits, {"n": 2}, "hash")
    archive.made(made, [{"operator": "widen"}], {"params": 12.0})
    told = Individual(1, (0,), edits, {"n": 2}, "hash", (0.5, -3.0), 1)
    archive.finish(
        second, told, "done", metrics={"val_accuracy": 0.5}, weights=["a", "b"], steps=7, seconds=(0.1, 2.0), worker=4
    )
    with Archive.read(path) as reader:
        assert reader.individual(1) == told
        assert reader.individual(0) == Individual(0, code={"n": 1})
        assert (reader.genome(1), reader.genome(0)) == ([{"operator": "widen"}], None)
        assert (reader.weights(1), reader.weights(0), reader.costs(1)) == (["a", "b"], [], {"params": 12.0})
        ((evaluation, individual),) = reader.finished()
        assert individual == told
        assert (evaluation.id, evaluation.individual, evaluation.kind, evaluation.status) == (2, 1, "new", "done")
        assert (evaluation.why, evaluation.steps, evaluation.worker, evaluation.attempts) == ("won", 7, 4, 1)
        assert (evaluation.make_seconds, evaluation.train_seconds) == (0.1, 2.0)
        assert evaluation.metrics == {"val_accuracy": 0.5}
        assert evaluation.proposed_at <= evaluation.finished_at <= time.time()
        assert reader.counts() == {"done": 1, "out": 1}
    with pytest.raises(KeyError):
        archive.individual(2)


def test_what_was_told_is_told_again_in_its_order(archive):
    told = [Individual(id, values=(float(id),), evaluations=1) for id in range(3)]
    ids = [archive.propose(job(id), {}) for id in range(3)]
    for id in (1, 2, 0):
        archive.finish(ids[id], told[id], "done", weights=[f"w{id}"])
    more = archive.propose(again(told[1], seed=9, rung=1), {})
    better = Individual(1, values=(4.0,), evaluations=2, rung=1)
    archive.finish(more, better, "done")
    failed = archive.propose(again(told[2], rung=2), {})
    archive.finish(failed, told[2], "failed", why="diverged")
    assert [each for _, each in archive.finished()] == [told[1], told[2], told[0], better, told[2]]
    rows = [row for row, _ in archive.finished()]
    assert [(row.kind, row.rung, row.seed) for row in rows[3:]] == [("again", 1, 9), ("again", 2, 0)]
    assert rows[4].ended == "diverged"
    assert archive.individual(1) == better
    assert archive.weights(1) == ["w1"]


def test_values_that_json_has_no_form_for(archive):
    evaluation = archive.propose(job(0), {})
    archive.finish(
        evaluation, Individual(0, values=(float("-inf"),), evaluations=1), "done", metrics={"x": float("nan")}
    )
    assert archive.individual(0).value == float("-inf")


def test_jobs_that_are_out_come_back_as_they_were_proposed(archive, path):
    parent = Individual(0, code=3, values=(1.0,), evaluations=1)
    archive.finish(archive.propose(job(0, code=3), {}), parent, "done")
    edits = (Edit("a", "1"),)
    jobs = [
        Job(Individual(1, (0, 0), edits, 4, "known"), Proposal((0, 0), edits, 4, known=True, why="x"), 8),
        again(parent, seed=11, rung=2),
    ]
    ids = [archive.propose(each, {}) for each in jobs]
    archive.made(Individual(1, (0, 0), edits, 5, "other"), {"g": 1}, {})
    assert archive.lost(ids[0], 3, "killed") == 1
    assert archive.lost(ids[0], 4, "killed again") == 2
    archive.close()
    with Archive.open(path) as resumed:
        assert resumed.out() == [(ids[0], jobs[0], 3), (ids[1], jobs[1], 1)]
        assert [loss[:3] for loss in resumed.losses()] == [(2, 3, "killed"), (2, 4, "killed again")]
        resumed.finish(ids[0], jobs[0].individual, "failed", why="lost three workers")
        assert [id for id, *_ in resumed.out()] == [ids[1]]
        assert [row.attempts for row, _ in resumed.finished()] == [1, 3]


def test_an_evaluation_ends_once(archive):
    evaluation = archive.propose(job(0), {})
    archive.finish(evaluation, Individual(0, values=(1.0,), evaluations=1), "done")
    with pytest.raises(RuntimeError, match="not out"):
        archive.finish(evaluation, Individual(0, values=(2.0,), evaluations=2), "done", weights=["x"])
    assert archive.individual(0).values == (1.0,)
    assert archive.weights(0) == []


def test_weights_that_nobody_needs_are_named(archive):
    for id, names in enumerate((["a"], ["a", "b"], ["c"])):
        archive.finish(archive.propose(job(id), {}), Individual(id), "done", weights=names)
    assert archive.held() == {"a", "b", "c"}
    assert archive.release({0, 7}) == ["b", "c"]
    assert [archive.weights(id) for id in range(3)] == [["a"], [], []]
    assert archive.held() == {"a"}
    assert archive.release([0]) == []


def test_what_is_kept_of_the_search_as_a_whole(archive):
    assert (archive.get("config"), archive.get("seed"), archive.get("nothing", 1)) == ({"a": [1, None]}, 3, 1)
    assert archive.state() is None
    archive.put("seed", 4)
    assert archive.get("seed") == 4


def test_another_can_read_while_one_writes(archive, path):
    with Archive.read(path) as reader:
        for id in range(3):
            archive.finish(archive.propose(job(id), {}), Individual(id), "done")
            assert reader.counts() == {"done": id + 1}
        with pytest.raises(EvolveError, match=r"could not be written.*readonly"):
            reader.put("seed", 1)


def test_files_that_are_none_are_refused(tmp_path, path, archive):
    with pytest.raises(EvolveError, match="is there already"):
        Archive.create(path, {})
    for open in (Archive.open, Archive.read):
        with pytest.raises(EvolveError, match="There is no search in"):
            open(tmp_path / "nothing.sqlite")
        (tmp_path / "text.sqlite").write_text("hello, this is no database at all" * 50)
        with pytest.raises(EvolveError, match=r"no archive of a search.*not a database"):
            open(tmp_path / "text.sqlite")
        sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE IF NOT EXISTS x (y)").connection.close()
        with pytest.raises(EvolveError, match="no archive of a search"):
            open(tmp_path / "other.sqlite")
    archive._db.execute("PRAGMA user_version = 99")
    with pytest.raises(EvolveError, match=r"has version 99.*knows version 1"):
        Archive.open(path)
    with pytest.raises(EvolveError, match="cannot be opened"):
        Archive.create(tmp_path / "no" / "folder.sqlite", {})


def test_a_damaged_file_is_told(tmp_path, archive, path):
    archive.close()
    content = bytearray(path.read_bytes())
    content[4096:12288] = b"garbage!" * 1024
    path.write_bytes(content)
    for open in (Archive.open, Archive.read):
        with pytest.raises(EvolveError, match=r"is damaged: .*Put it back from a copy, or begin a new search"):
            open(path)


WRITER = """
import sys
from pathlib import Path
from evolve.population.archive import Archive
from evolve.population.individual import Individual, Proposal
from evolve.population.planner import Job

path = Path(sys.argv[1])
archive = Archive.open(path) if path.exists() else Archive.create(path, {})
for evaluation, job, _ in archive.out():
    archive.finish(evaluation, job.individual, "failed")
id = sum(archive.counts().values())
while True:
    evaluation = archive.propose(Job(Individual(id), Proposal(), 0), {"next": id + 1})
    archive.made(Individual(id, key=str(id)), {"id": id}, {})
    archive.finish(evaluation, Individual(id, key=str(id), values=(1.0,), evaluations=1), "done", weights=[str(id)])
    print(id, flush=True)
    id += 1
"""


def test_no_acknowledged_child_is_lost_when_its_writer_is_killed(path):
    acknowledged = set()
    for wait in (0.0, 0.003, 0.02, 0.05):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as writer:
            acknowledged.add(int(writer.stdout.readline()))
            time.sleep(wait)
            writer.send_signal(signal.SIGKILL)
            acknowledged |= {int(line) for line in writer.stdout.read().split()}
    with Archive.open(path) as archive:
        assert archive._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        done = {each.id for row, each in archive.finished() if row.status == "done"}
        assert acknowledged <= done
        assert len(archive.out()) <= 1
        assert archive.state() == {"next": sum(archive.counts().values())}
        for id in done:
            assert (archive.individual(id).key, archive.genome(id), archive.weights(id)) == (
                str(id),
                {"id": id},
                [str(id)],
            )
