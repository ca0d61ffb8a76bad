"""The tutorial works as it stands: its files are written, its commands typed, its results are what it says."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from helpers.pages import ROOT, blocks

from evolve.cli import app
from evolve.lineage import Lineage
from evolve.operators import operators

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; what its files register and import is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    operators.unregister("learnable_relu")
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def applied(run: str) -> list[tuple[str, str | None]]:
    records = Lineage.read(Path(run) / "lineage.jsonl")
    return [(record.operator, record.site) for record in records if record.status == "applied"]


def test_from_the_first_file_to_the_last(folder, capsys):
    for language in ("python", "yaml"):
        for block in blocks(PAGE, language):
            named = re.match(r"# (\w+\.\w+)\n", block)
            if named:
                Path(named[1]).write_text(block, encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == {
        *("waves.py", "slopes.py", "take_home.py"),
        *("waves.yaml", "plateau.yaml", "slopes.yaml"),
    }
    first, *later = blocks(PAGE, "sh")
    assert first == "pip install .\nevolve run configs/quickstart.yaml\nevolve report runs/quickstart\n"
    for line in "".join(later).splitlines():
        evolve_, *words = line.split()
        assert evolve_ == "evolve"
        app(words, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "learnable_relu" in shown
    assert applied("runs/waves") == [("widen", "features.0"), ("deepen", "features"), ("widen", "features.3")]
    assert applied("runs/slopes") == [("learnable_relu", "features.2")]
    assert applied("runs/plateau")
    runpy.run_path("take_home.py")
