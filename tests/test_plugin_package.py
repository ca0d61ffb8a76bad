"""The plugin package in examples/plugin: installed, found by its entry points, run from YAML, held by the contract."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytest.importorskip("hatchling")  # builds the package without a download
ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"


def command(*words: str, folder: Path, installed: Path | None = None) -> str:
    """Runs a module of Python and returns what it prints; the plugin is there as an installed package."""
    path = [str(ROOT), *([str(installed)] if installed else [])]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    try:  # not imported: a process that has imported pip gets another distutils, over which torch.compile stumbles
        distribution("pip")
    except PackageNotFoundError:
        pytest.skip("pip is not installed")
    target = tmp_path_factory.mktemp("site-packages")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command("pip", "install", *offline, "--target", str(target), str(PLUGIN), folder=target)
    return target


def test_it_runs_from_yaml(installed, tmp_path):
    settings = ["training.epochs=3", f"output.dir={tmp_path / 'run'}"]
    shown = command("evolve", "run", str(PLUGIN / "run.yaml"), *settings, folder=tmp_path, installed=installed)
    assert "2 applied, 0 refused" in shown
    assert "has a term of rank 2" in shown
    assert (tmp_path / "run" / "lineage.jsonl").read_text().count('"low_rank"') >= 2
    code = tmp_path / "loads.py"
    code.write_text("import evolve\nprint(type(evolve.load('run')[1]).__name__)\n")
    assert command("loads", folder=tmp_path, installed=installed) == "LowRankLinear\n"


def test_its_own_tests_hold_it_to_the_contract(installed, tmp_path):
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--rootdir", str(tmp_path)]
    shown = command("pytest", *quiet, str(PLUGIN / "tests"), folder=tmp_path, installed=installed)
    assert "4 passed" in shown
