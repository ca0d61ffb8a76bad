"""`evolve replay`: the model as it was after a mutation, with trained weights where a checkpoint has them."""

import shutil

import pytest
import torch
from helpers.cli_runs import invoke, metrics, succeeds, write_config

import evolve
from evolve.lineage import Lineage

EVOLUTION = {
    "schedule": {"name": "every", "options": {"epochs": 1, "stop": 3}},
    "policy": {"name": "round_robin"},
    "operators": [{"name": "widen", "options": {"factor": 1.5}}, {"name": "deepen"}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three mutations, after epochs 1, 2 and 3 of 5; the checkpoint of each epoch is kept."""
    folder = tmp_path_factory.mktemp("run")
    output = {"dir": str(folder / "run"), "keep": 9}
    training = {"epochs": 5, "device": "cpu"}
    succeeds("run", write_config(folder, evolution=EVOLUTION, training=training, output=output))
    records = Lineage.read(folder / "run/lineage.jsonl")
    assert [(one.index, one.status) for one in records] == [(0, "applied"), (1, "applied"), (2, "applied")]
    return folder / "run"


@pytest.fixture
def thinned(run, tmp_path):
    """The same with the newest checkpoint alone."""
    copy = tmp_path / "thinned"
    shutil.copytree(run, copy)
    for path in sorted((copy / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(path)
    shutil.rmtree(copy / "best")
    return copy


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_weights_are_those_right_before_the_next_mutation(run, tmp_path):
    text = " ".join(succeeds("replay", run, "--until", 0, "--output", tmp_path / "out").split())
    assert "after mutation 0: 1 applied" in text
    assert "epoch 2, step 8" in text
    assert same(evolve.load(tmp_path / "out", which="last"), evolve.load(run, which=2))
    assert len(metrics(tmp_path / "out")) == 2
    assert len(Lineage.read(tmp_path / "out/lineage.jsonl")) == 1


def test_the_newest_of_several_checkpoints_counts(run, tmp_path):
    succeeds("replay", run, "--until", 2, "--output", tmp_path / "out")
    assert same(evolve.load(tmp_path / "out", which="last"), evolve.load(run, which=5))
    assert not same(evolve.load(run, which=4), evolve.load(run, which=5))


def test_what_is_written_with_trained_weights_goes_on_as_the_run_did(run, tmp_path):
    succeeds("replay", run, "--until", 1, "--output", tmp_path / "out")
    succeeds("resume", tmp_path / "out")
    assert same(evolve.load(tmp_path / "out", which="last"), evolve.load(run, which="last"))


@pytest.mark.parametrize("until", ["base", 0, 1])
def test_without_a_checkpoint_from_then_the_architecture_alone_is_rebuilt(thinned, tmp_path, until):
    text = " ".join(succeeds("replay", thinned, "--until", until, "--output", tmp_path / "out").split())
    assert "Weights: drawn anew, not trained" in text
    assert "The run has some from after mutation 2; it keeps more" in text
    records = Lineage.read(thinned / "lineage.jsonl")
    expected = records[0].params_before if until == "base" else records[until].params_after
    assert f", {expected:,} parameters" in text
    assert parameters(evolve.load(tmp_path / "out")) == expected


def test_a_model_that_nothing_trained_is_not_resumed(thinned, tmp_path):
    succeeds("replay", thinned, "--until", 0, "--output", tmp_path / "out")
    result = invoke("resume", tmp_path / "out")
    assert result.exit_code == 1
    assert "was replayed and not trained" in result.output


def test_without_output_nothing_is_written(run):
    before = sorted(path for path in run.parent.rglob("*"))
    assert "Nothing was written" in succeeds("replay", run, "--until", 2)
    assert sorted(path for path in run.parent.rglob("*")) == before


def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    result = invoke("replay", run, "--until", 0, "--output", tmp_path)
    assert result.exit_code == 1
    assert "nothing is written over" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(("until", "told"), [(3, "has mutations 0 to 2"), ("x", "or base"), (-1, "or base")])
def test_numbers_that_are_none(run, until, told):
    result = invoke("replay", run, "--until", until)
    assert result.exit_code in (1, 2)
    assert told in " ".join(result.output.replace("│", " ").split())
