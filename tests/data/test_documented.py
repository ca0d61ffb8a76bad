"""Every data set that can be named is described, with all its options and their defaults."""

import re
from pathlib import Path

import pytest
import yaml

from evolve.config import signature_of
from evolve.data import datasets

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
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
