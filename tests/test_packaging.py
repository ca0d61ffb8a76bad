"""What the package says of itself is true: pip, or whoever cites it, finds out when it is too late."""

import re
from pathlib import Path

import pytest
import yaml

import evolve

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_name_extras_that_are_there(extra):
    for requirement in EXTRAS[extra]:
        assert not requirement.startswith("evolve["), "another project's package"
        named = re.match(rf"{PROJECT['name']}\[(.*)\]", requirement)
        assert set(named[1].split(",")) <= set(EXTRAS) if named else True


def test_nothing_tells_people_to_install_another_projects_package():
    """`evolve` on the package index is something else; `pip install 'evolve[plot]'` would bring that."""
    text = re.compile(r"pip install (?:-\S+ )*['\"]?evolve(?:\[|['\"\s]|$)", re.MULTILINE)
    assert text.search('pip install "evolve[plot]"')
    assert not text.search(f"pip install '{PROJECT['name']}[plot]'")
    for suffix in ("py", "md", "yaml", "toml", "ipynb"):
        for path in [*ROOT.glob(f"*.{suffix}"), *ROOT.glob(f"[!.]*/**/*.{suffix}")]:
            if path != Path(__file__):
                assert not text.search(path.read_text(encoding="utf-8")), path


def test_one_version_everywhere():
    assert PROJECT["dynamic"] == ["version"]  # hatchling reads it from evolve/__init__.py
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == evolve.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## [{evolve.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_classifiers_are_those_that_the_index_takes():
    known = pytest.importorskip("trove_classifiers").classifiers  # hatchling brings it
    assert set(PROJECT["classifiers"]) <= known
    lowest = re.search(r">=3\.(\d+)", PROJECT["requires-python"])[1]
    assert f"Programming Language :: Python :: 3.{lowest}" in PROJECT["classifiers"]
