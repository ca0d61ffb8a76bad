"""Every data set that can be named is described, with all its options and their defaults."""

import re

import pytest
import yaml
from helpers.pages import ROOT, blocks

from evolve.config import signature_of
from evolve.data import datasets

PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
GIVEN = {"batch_size", "augment", "seed", "workers", "collate_fn"}  # keys of their own


def cell(name):
    """The options of a data set, as the table has them."""
    (row,) = [line for line in PAGE.splitlines() if re.match(rf"\| [^|]*`{name}`[^|]*\| ", line)]
    return row.split("|", 2)[2]


@pytest.mark.parametrize("name", [n for n in datasets if datasets.get(n).__module__.startswith("evolve.")])
def test_options_and_defaults(name):
    text = cell(name)
    described = {part.partition(":")[0]: part for part in re.findall(r"`([a-z_]+(?:: [^`]+)?)`", text)}
    for option, parameter in signature_of(datasets.get(name)).items():
        if option in GIVEN:
            continue
        assert option in described, option
        _, colon, default = described[option].partition(": ")
        if parameter.default is parameter.empty:
            assert not colon, option
        else:
            stored = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert yaml.safe_load(default) == stored, option


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    code = blocks(page, "python")
    assert len(code) == 8
    names = {"__name__": "page"}
    for block in code:
        exec(compile(block, "docs/data.md", "exec"), names)
    made_up = set(re.findall(r"^\| `(fake\w*)`", page, flags=re.MULTILINE))
    assert made_up == {name for name in datasets if name.startswith("fake")}
