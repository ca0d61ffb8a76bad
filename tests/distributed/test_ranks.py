"""Whole runs on two ranks (gloo): the same as on one, the same on both, ended with a message where a rank is lost."""

import json
import os

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import run

from evolve.lineage import Lineage

SCENARIOS = [
    *("three/2/-", "three/1/-", "accumulated/2/-", "accumulated/1/-", "ignored/2/-", "ignored/1/-"),
    *("probation/2/probation", "children/2/-"),
    *("gradient/2/-", "stopped/2/stopped", "stopped_again/1/stopped", "resumed/2/stopped", "killed/2/killed"),
    *("resumed/2/killed", "stuck/2/stuck", "out_of_memory/2/oom", "drifted/2/drifted", "other_seed/2/seed"),
    *("other_code/2/code", "locked/2/stopped", "command/2/command"),
    *("undecided/2/undecided", "missing/2/-", "killed_in_step/2/-", "seconds/2/-", "wrapped/2/-"),
]

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or not hasattr(os, "fork"), reason="needs gloo and fork"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def answers(root):
    found, seconds, said = run(root, SCENARIOS)
    assert "Traceback" not in said, said
    return dict(zip(SCENARIOS, zip(found, seconds, strict=True), strict=True))


def ended(answers, name):
    """What each rank ended with; the ranks of a run know the same."""
    assert all("told" in answer for answer in answers[name][0]), answers[name][0]
    found = [answer["told"] for answer in answers[name][0]]
    assert all(one == found[0] for one in found)
    return found[0]


def errors(answers, name):
    return [answer and (answer["error"], answer["message"]) for answer in answers[name][0]]


def assert_same_weights(one, other):
    assert one["names"] == other["names"]
    for here, there in zip(one["weights"], other["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(here), torch.tensor(there), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["three", "accumulated", "ignored"])
def test_two_ranks_end_as_one_process_with_the_same_batches(answers, name):
    two, one = ended(answers, f"{name}/2/-"), ended(answers, f"{name}/1/-")
    assert two["operators"] == one["operators"] == ["widen", "deepen", "narrow"]
    assert len(two["digests"]) == 3  # equal on both ranks: `ended`
    assert two["step"] == one["step"]
    assert_same_weights(two, one)
    for here, there in zip(two["history"], one["history"], strict=True):
        assert here == pytest.approx(there, abs=1e-5)
    assert not any("module." in key for key in two["names"])


def test_a_mutation_on_probation_goes_back_on_all(answers):
    assert ended(answers, "probation/2/probation")["verdicts"] == [False]


@pytest.mark.parametrize("name", ["children", "gradient"])
def test_policies_that_look_at_children_and_gradients(answers, name):
    assert len(ended(answers, f"{name}/2/-")["operators"]) == 1


def test_a_run_is_resumed_on_another_number_of_ranks(answers):
    assert ended(answers, "stopped/2/stopped")["step"] == 7  # one rank was asked to stop, and all did
    assert ended(answers, "stopped_again/1/stopped")["step"] == 12
    last, whole = ended(answers, "resumed/2/stopped"), ended(answers, "three/1/-")
    assert last["step"] == whole["step"]
    assert_same_weights(last, whole)


def test_a_rank_killed_in_a_mutation_ends_the_others_with_a_message(answers, root):
    (error, message), other = errors(answers, "killed/2/killed")
    assert error == "LostRankError"
    assert "Rank 0 of 2 has lost another rank" in message
    assert "evolve resume" in message
    assert other is None
    assert answers["killed/2/killed"][1] < 30
    last = ended(answers, "resumed/2/killed")
    assert_same_weights(last, ended(answers, "three/1/-"))
    assert [record.success for record in Lineage.read(root / "killed" / "lineage.jsonl")] == [True] * 3


def test_a_rank_killed_in_a_step_ends_the_others_with_a_message(answers):
    (error, message), _ = errors(answers, "killed_in_step/2/-")
    assert error == "LostRankError"
    assert "Rank 0 of 2 has lost another rank" in message


def test_all_ranks_go_by_the_clock_of_the_first(answers):
    found = ended(answers, "seconds/2/-")
    assert found["step"] > 0
    assert found["history"][-1]["progress"] == 1


def test_models_that_are_wrapped_already_are_refused(answers):
    sharded, parallel = ended(answers, "wrapped/2/-")
    assert "The model, a FSDPSequential, was sharded by `fully_shard`, so that no rank holds the whole" in sharded
    assert "before it is sharded" in sharded
    assert "The model, a DistributedDataParallel, fixes its parameters when it is made" in parallel
    assert ".module" in parallel


def test_a_rank_that_does_not_answer_is_named(answers):
    (error, message), _ = errors(answers, "stuck/2/stuck")
    assert error == "LostRankError"
    assert "Rank 1 failed" in message
    assert answers["stuck/2/stuck"][1] < 15


def test_where_one_rank_runs_out_of_memory_all_go_back(answers):
    assert ended(answers, "out_of_memory/2/oom")["operators"] == ["widen", "narrow"]


def test_an_error_of_the_first_rank_ends_all(answers):
    first, second = errors(answers, "undecided/2/undecided")
    assert first == ("EvolveError", "no idea")
    assert second == ("EvolveError", "Rank 0 failed as it decided: EvolveError: no idea")


def test_data_are_read_by_the_first_rank_first(answers):
    first, second = errors(answers, "missing/2/-")
    assert first == second
    assert "nowhere.csv" in first[1]


def test_a_rank_that_drifts_is_found_after_the_mutation(answers):
    found = errors(answers, "drifted/2/drifted")
    assert found[0] == found[1]
    error, message = found[0]
    assert error == "RanksDifferError"
    assert "after the mutation. Rank 1 differs from rank 0 in: optimizer." in message


@pytest.mark.parametrize(
    ("name", "what"),
    [("other_seed/2/seed", "seed (2, not 1)"), ("other_code/2/code/run", "code")],
    ids=["seed", "code"],
)
def test_a_rank_that_was_started_otherwise_is_found_before_the_first_step(answers, root, name, what):
    found = errors(answers, name.removesuffix("/run"))
    assert found[0] == found[1]
    error, message = found[0]
    assert error == "RanksDifferError"
    assert f"before the first step. Rank 1 differs from rank 0 in: {what}" in message
    assert not (root / name.split("/", 2)[2]).exists()  # no run began


def test_what_the_first_rank_raises_over_the_folder_all_raise(answers):
    found = errors(answers, "locked/2/stopped")
    assert found[0] == found[1]
    assert "holds a run already" in found[0][1]


def test_on_the_command_line_the_first_rank_writes_and_speaks(answers, root):
    first, second = (answer["told"] for answer in answers["command/2/command"][0])
    assert (first["code"], second["code"]) == (0, 0), first["output"]
    assert "Sequential on cpu x 2: 1,438 training" in first["output"]
    assert "Mutations           1 applied" in first["output"]
    assert second["output"] == ""
    lines = (root / "command" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert len((root / "command" / "csv" / "mutations.csv").read_text().splitlines()) == 2
