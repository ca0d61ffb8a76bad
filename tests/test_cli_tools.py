"""`evolve init`, `evolve doctor`, completion, and how quick help is."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from helpers.cli_runs import invoke, metrics, succeeds

from evolve.lineage import Lineage
from evolve.report import doctor
from evolve.report.doctor import EXTRAS, examine

ROOT = Path(__file__).parents[1]


# All in one interpreter of its own: importing torch is what takes long.
TRY_OUT = """
from evolve.cli import app
app(["validate", "config.yaml"], standalone_mode=False)
app(["run", "config.yaml", "training.epochs=2", "evolution.schedule.options.epochs=1"], standalone_mode=False)
import test_own_parts
test_own_parts.test_the_operator_keeps_the_contract()
test_own_parts.test_several_layers()
"""


def test_what_init_writes_is_valid_runs_and_keeps_the_contract(tmp_path):
    mine = tmp_path / "mine"
    assert f"cd {mine}" in " ".join(succeeds("init", mine).split())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(mine)])}
    words = [sys.executable, "-c", TRY_OUT]
    done = subprocess.run(words, cwd=mine, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "config.yaml: valid." in done.stdout
    assert "Traceback" not in done.stderr
    assert len(metrics(mine / "runs/first")) == 2
    records = Lineage.read(mine / "runs/first/lineage.jsonl")
    assert [(one.operator, one.status) for one in records] == [("damped_layer", "applied")]


@pytest.mark.parametrize("name", ["config.yaml", "own_parts.py", "test_own_parts.py"])
def test_init_writes_over_nothing(tmp_path, name):
    (tmp_path / name).write_text("mine")
    result = invoke("init", tmp_path)
    assert result.exit_code == 2
    assert name in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_doctor_finds_that_all_is_well():
    found = json.loads(succeeds("doctor", "--json"))
    states = {one["name"]: one["state"] for one in found["findings"]}
    assert found["works"] is True
    assert states["mutation on cpu"] == states["torch"] == states["disk"] == states["plugins"] == "ok"
    assert {f"extra {name}" for name in EXTRAS} <= set(states)
    assert "broken" not in succeeds("doctor")


def test_doctor_names_what_is_broken_and_fails(monkeypatch):
    good = EntryPoint("good", "evolve.operators:MutationOperator", "evolve.operators")
    bad = EntryPoint("bad", "no_such_package.operators:Thing", "evolve.operators")
    points = EntryPoints([good, bad])
    monkeypatch.setattr(doctor, "entry_points", lambda **which: points.select(**which) if which else points)
    monkeypatch.setattr(doctor, "mutate", lambda *_, **__: 1 / 0)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "Broken: plugin bad, mutation on cpu." in result.stderr
    assert "no_such_package" in result.stdout
    assert "ZeroDivisionError" in result.stdout


def test_doctor_says_what_a_missing_extra_is_for(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "timm" else object())
    found = {one.name: one for one in examine(Path.cwd())}
    assert found["extra timm"].state == "missing"
    assert "models of timm by name" in found["extra timm"].text
    assert "pip install timm" in found["extra timm"].text


def test_doctor_knows_the_extras_of_the_package():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(known) - set(EXTRAS) <= {"notebook", "tune", "benchmark", "test", "dev", "docs"}
    for extra, (modules, _) in EXTRAS.items():
        assert [one for one in known[extra] if one.split(">")[0].split("[")[0] not in modules] == []


def test_completion_is_offered_without_being_in_the_way(monkeypatch):
    help_text = succeeds("--help")
    assert "--show-completion" not in help_text
    assert "evolve --install-completion" in " ".join(help_text.split())
    assert "complete_bash" in succeeds("--show-completion", "bash")
    environment = {**os.environ, "_EVOLVE_COMPLETE": "complete_bash", "COMP_WORDS": "evolve re", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['evolve']; from evolve.cli import app; app(prog_name='evolve')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["resume", "report", "replay"]


def test_help_takes_less_than_half_a_second_of_cpu():
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "evolve", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5
