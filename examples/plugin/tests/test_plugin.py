"""What evolve asks of an operator, and what the schedule and the policy are for."""

from types import SimpleNamespace

import torch
from evolve_low_rank.policy import LeastTouched
from evolve_low_rank.schedule import Doubling
from torch import nn

from evolve.policies import Candidate
from evolve.schedules import Clock
from evolve.testing import Subject, check_operator


def test_the_operator_keeps_the_contract():
    assert check_operator("low_rank", most_sites=1, rank=2) > 10


def test_it_applies_at_every_linear_layer():
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    assert check_operator("low_rank", {"mine": Subject(build, lambda: torch.randn(5, 6))}) == 2


def test_the_schedule_doubles():
    schedule = Doubling(first=3)
    due = [epoch for epoch in range(1, 30) if schedule.due(Clock(epoch, step=epoch, epoch_end=True))]
    assert due == [3, 6, 12, 24]
    assert not schedule.due(Clock(3, step=3, epoch_end=False))


def test_the_policy_goes_where_the_least_was_done():
    first, second = Candidate("low_rank", "0"), Candidate("low_rank", "2")

    def choose(changed, tried):
        records = [SimpleNamespace(site=site, status="applied") for site in changed]
        return LeastTouched().choose([first, second], SimpleNamespace(records=records, tried=tried))

    assert choose(changed=[], tried=[]).candidate == first
    assert choose(changed=["0"], tried=[]).candidate == second
    assert choose(changed=["0"], tried=[second]).candidate == first
    assert choose(changed=[], tried=[first, second]) is None
