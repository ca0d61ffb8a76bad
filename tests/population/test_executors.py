"""Every executor gives the same answers, survives its workers, and leaves no process behind."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.toy_search import PATH, order
from pydantic import ValidationError

from evolve.errors import EvolveError, UnknownNameError
from evolve.population.blobs import BlobFolder
from evolve.population.executors import executors
from evolve.population.jobs import Setup
from evolve.population.worker import create_evaluator

SETUP = Setup(space={"name": PATH})


@pytest.fixture(scope="module", params=sorted(executors))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine that all tests share, as it takes seconds to begin."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def executor(name, folder, request):
    if name == "ray":
        request.getfixturevalue("cluster")
    with executors.get(name)(**({"cpus": 0.5} if name == "ray" else {})) as executor:
        executor.start(SETUP, folder)
        yield executor


@pytest.fixture(params=["processes", "ray"])
def pool(request, tmp_path):
    """Makes executors of one worker that can be lost, and closes them."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
    yield from started(request.param, tmp_path)


@pytest.fixture
def processes(tmp_path):
    yield from started("processes", tmp_path)


def started(name, folder):
    made, small = [], {"workers": 1, **({"cpus": 0.1} if name == "ray" else {})}

    def make(setup=SETUP, **options):
        made.append(executors.get(name)(**small | options))
        made[-1].start(setup, folder)
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def ask(executor, method, order, worker=0):
    executor.call(worker, method, order)
    (answer,) = executor.wait(30)
    return answer


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_children_grow_out_of_parents(executor, folder):
    assert executor.idle() == list(range(executor.workers))
    made = ask(executor, "make", order(0, edits=[("add", "7"), ("add", "-2")]))
    assert made.worker == 0
    assert made.content == {"genome": 5, "key": "5", "code": 5, "metrics": {"params": 5}}
    trained = ask(executor, "train", order(0, edits=[("add", "7"), ("add", "-2")]))
    assert trained.content["metrics"]["fitness"] == -35
    weights = trained.content["weights"]
    assert BlobFolder(folder).read(*weights) == b"5 of 0"
    child = order(1, genome=5, edits=[("add", "3")], weights=weights)
    last = executor.workers - 1  # who has never seen the parent's weights
    assert ask(executor, "make", child, last).content["genome"] == 8
    assert BlobFolder(folder).read(*ask(executor, "train", child, last).content["weights"]) == b"8 of 1"
    assert ask(executor, "make", child).content["genome"] == 8
    assert executor.idle() == list(range(executor.workers))


def test_errors_and_refusals_are_answers(executor):
    assert ask(executor, "make", order(2, edits=[("add", "-101")])).content == {"refused": "too small"}
    for what, text in (("raise", "ZeroDivisionError: division by zero"), ("leave", "SystemExit: 3")):
        answer = ask(executor, "make", order(3, edits=[("do", f"{what} while making")]))
        assert answer.content == {"error": text}
        assert not answer.lost
    missing = ask(executor, "make", order(4, genome=1, weights=["0" * 64]))
    assert "0" * 64 in missing.content["error"]
    assert ask(executor, "make", order(5)).content["genome"] == 0


def test_a_busy_worker_is_not_idle(executor):
    assert executor.wait(0) == []
    executor.call(0, "make", order(6))
    assert 0 not in executor.idle()
    assert [answer.content["genome"] for answer in executor.wait(None)] == [0]
    assert executor.wait(None) == []


def test_facts(executor, name):
    facts = json.loads(json.dumps(executor.facts()))
    assert (facts["executor"], facts["workers"]) == (name, executor.workers)


def test_what_a_child_prints_goes_to_the_drivers_errors(capfd, processes):
    executor = processes()
    ask(executor, "make", order(7, edits=[("do", "print while making")]))
    ask(executor, "make", order(8, edits=[("do", "raise while making")]))
    out, err = capfd.readouterr()
    assert out == ""
    assert "hello from a child\n" in err
    assert "worker 0: Individual 8: an error where it was to make" in err
    assert "toy_search.py" in err  # the traceback


@pytest.mark.parametrize("what", ["die", "exit", "hang"])
def test_a_lost_worker_is_replaced(pool, what):
    executor = pool(timeout=0.7)
    ask(executor, "make", order(0))
    before = ask(executor, "train", order(0)).content["metrics"]["pid"]
    disaster = order(1, edits=[("do", f"{what} while training")])
    ask(executor, "make", disaster)
    answer = ask(executor, "train", disaster)
    assert answer.content is None
    ray = {"die": "it was lost by Ray", "exit": "it was lost by Ray"} if executor.name == "ray" else {}
    why = {"die": "killed by SIGKILL", "exit": "exit code 3", "hang": "not answer within 0.7 seconds", **ray}
    assert why[what] in answer.lost
    assert gone([before])
    lost = ask(executor, "train", order(0))  # nothing is made in the new worker
    assert "has ended" in lost.lost
    ask(executor, "make", order(0))
    assert ask(executor, "train", order(0)).content["metrics"]["pid"] not in (before, os.getpid())


def test_a_worker_killed_while_idle_loses_nothing_that_is_made_anew(pool):
    executor = pool()
    ask(executor, "make", order(0))
    pid = ask(executor, "train", order(0)).content["metrics"]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert gone([pid])
    answers = [ask(executor, "make", order(1)) for _ in range(2)]
    assert answers[-1].content["genome"] == 0
    assert ask(executor, "train", order(1)).content["metrics"]["pid"] != pid


def test_devices_and_threads_are_dealt_out(processes):
    executor = processes(workers=3, devices=["cuda:0", "cuda:1"], threads=2)
    given = []
    for worker in range(3):
        ask(executor, "make", order(0), worker)
        given.append(ask(executor, "train", order(0), worker).content["given"])
    assert given == [["cuda:0", 2, "2"], ["cuda:1", 2, "2"], ["cuda:0", 2, "2"]]
    assert executor.facts()["devices"] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("way", ["close", "garbage"])
def test_nothing_is_left_behind(processes, way, tmp_path):
    executor = executors.get("processes")(workers=2)
    executor.start(SETUP, tmp_path)
    pids = [worker._popen.pid for worker in executor._workers]
    for worker in range(2):
        executor.call(worker, "make", order(0, edits=[("do", "hang while making")]))
    if way == "close":
        executor.close()
        executor.close()
    else:
        del executor
        gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # not even as zombies


DRIVER = """
import signal, sys
from pathlib import Path
from evolve.population.executors import executors
from evolve.population.jobs import Setup
from helpers.toy_search import PATH, order

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore Ctrl-C
executor = executors.get("processes")(workers=2)
executor.start(Setup(space={"name": PATH}), Path(sys.argv[1]))
for worker in range(2):
    executor.call(worker, "make", order(0, edits=[("do", "hang while making")]))
print(*(worker._popen.pid for worker in executor._workers), flush=True)
executor.wait(None)
"""


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_workers_end_with_their_driver(tmp_path, signal_name):
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as driver:
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        driver.send_signal(getattr(signal, signal_name))
        try:
            driver.wait(10)
        finally:
            driver.kill()
    assert gone(pids)


ACTOR = "import os; from evolve.population.worker import end_with; end_with(os.getppid())"
NODE = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {ACTOR!r}]).pid, flush=True)
time.sleep(60)
"""


def test_an_actor_ends_with_its_node():
    with subprocess.Popen(
        [sys.executable, "-c", NODE],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as node:
        pid = int(node.stdout.readline())
        assert not gone([pid], 1.0)
        node.kill()
    assert gone([pid])


def test_what_cannot_begin_is_told(pool):
    with pytest.raises(EvolveError, match="no numbers today"):
        pool(Setup(space={"name": PATH, "options": {"fault": "refuses"}}))


def test_workers_that_always_end_are_not_begun_for_ever(processes, monkeypatch):
    monkeypatch.setattr("evolve.population.executors.pool._STARTS", 2)
    with pytest.raises(EvolveError, match=r"2 workers in a row ended before they were ready.*exit code 7"):
        processes(Setup(space={"name": PATH, "options": {"fault": "exits"}}))


def test_a_worker_that_hangs_as_it_begins_is_replaced(processes, monkeypatch):
    monkeypatch.setattr("evolve.population.executors.processes._START", 0.2)
    monkeypatch.setattr("evolve.population.executors.processes._START_FACTOR", 5.0)
    executor = processes()
    ask(executor, "make", order(0))
    os.kill(ask(executor, "train", order(0)).content["metrics"]["pid"], signal.SIGKILL)
    executor.call(0, "make", order(1))
    others = set(children_of(os.getpid()))
    (lost,) = executor.wait(30)  # the next one begins
    assert "killed by SIGKILL" in lost.lost
    (pid,) = set(children_of(os.getpid())) - others
    os.kill(pid, signal.SIGSTOP)
    executor.call(0, "make", order(1))
    (lost,) = executor.wait(60)
    assert re.search(r"it was not ready after \d+ seconds; others were after \d", lost.lost)
    assert gone([pid])
    assert ask(executor, "make", order(1)).content["genome"] == 0


def test_spaces_that_are_none_are_told():
    with pytest.raises(EvolveError, match="refuses its options"):
        create_evaluator(Setup(space={"name": PATH, "options": {"seconds": -1}}))
    with pytest.raises(UnknownNameError, match="'nowhere'"):
        create_evaluator(Setup(space={"name": "nowhere"}))
    with pytest.raises(UnknownNameError, match="no search space"):
        create_evaluator(Setup(space={"name": "helpers.toy_search:order"}))


def test_a_cluster_that_is_too_small_is_told(cluster, tmp_path):
    with pytest.raises(EvolveError, match=r"3 workers with 2 cpus each need 6, and the cluster has 2\. Set `workers`"):
        executors.get("ray")(workers=3, cpus=2.0).start(SETUP, tmp_path)
    with pytest.raises(EvolveError, match=r"with 0.5 gpus each"):
        executors.get("ray")(workers=3, cpus=0.5, gpus=0.5).start(SETUP, tmp_path)


def test_a_missing_ray_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvolveError, match=r"The executor 'ray' needs the package ray.*pip install ray"):
        executors.get("ray")().start(SETUP, tmp_path)


def test_bad_options_are_refused():
    for options in ({"workers": 0}, {"timeout": -1.0}, {"worker": 3}):
        for name in ("processes", "ray"):
            with pytest.raises(ValidationError):
                executors.get(name)(**options)
