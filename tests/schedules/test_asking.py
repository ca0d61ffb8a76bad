"""Schedules that look at finished epochs are asked when one ends, the others after each step."""

import pytest

from evolve.config.options import Monitor
from evolve.evolver.timing import Timing
from evolve.schedules import ScheduleConfig


@pytest.mark.parametrize(
    ("name", "options", "in_between"),
    [
        ("every", {"epochs": 2}, False),
        ("every", {"steps": 2}, True),
        ("every", {"progress": 0.5}, True),
        ("at", {"epochs": [2]}, False),
        ("at", {"steps": [2]}, True),
        ("plateau", {}, False),
    ],
)
def test_when_they_are_asked(name, options, in_between):
    timing = Timing(ScheduleConfig(name=name, options=options).build(), Monitor())
    assert timing.asks(True)
    assert timing.asks(False) is in_between
