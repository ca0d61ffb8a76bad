"""The extras that the package names are there: pip finds out when it is too late."""

import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11
EXTRAS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_name_extras_that_are_there(extra):
    for requirement in EXTRAS[extra]:
        named = re.match(r"evolve\[(.*)\]", requirement)
        assert set(named[1].split(",")) <= set(EXTRAS) if named else True
