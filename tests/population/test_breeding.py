"""Children are what their records say, with their parents' weights, and what goes wrong with one is an answer."""

import json

import pytest
import torch
from helpers.small_search import search_config
from torch.nn import functional

from evolve.lineage import Record
from evolve.population import breeding
from evolve.population.blobs import BlobFolder
from evolve.population.breeding import Breeder
from evolve.population.config import load_search
from evolve.population.weights import read_weights


@pytest.fixture
def blobs(tmp_path):
    return BlobFolder(tmp_path / "weights")


@pytest.fixture
def breeder(tmp_path):
    return Breeder.from_config(load_search(search_config(tmp_path)))


def order(individual, **changes):
    said = {"individual": individual, "seed": individual, "genome": None, "code": None, "other": None, "edits": []}
    more = {"weights": [], "rung": 0, "again": False, "length": 1.0, "seconds": None}
    return json.loads(json.dumps({**said, **more, **changes}))


def bred(breeder, blobs, **changes):
    """Makes and trains; returns both answers."""
    made = breeder.make(order(**changes), blobs)
    return made, breeder.train(order(**changes), blobs)


def outputs(breeder):
    model = breeder._child.model.eval()
    return model(breeder.subject.data.train.examples(4)[0])


def test_a_child_begins_with_the_function_of_its_parent(breeder, blobs):
    root, trained = bred(breeder, blobs, individual=0)
    breeder.make(order(1, genome=root["genome"], weights=trained["weights"]), blobs)
    parent = outputs(breeder)
    for seed, edit in enumerate((["widen", "1"], ["deepen", "2"]), 2):
        made = breeder.make(order(seed, genome=[], weights=trained["weights"], edits=[edit]), blobs)
        assert made["edits"] == [edit]
        assert made["key"] != root["key"]
        assert torch.allclose(outputs(breeder), parent, atol=1e-6)


def test_records_and_weights_are_all_there_is_of_it(tmp_path, breeder, blobs):
    _, trained = bred(breeder, blobs, individual=0)
    made, child = bred(breeder, blobs, individual=1, genome=[], weights=trained["weights"], edits=[["widen", "1"]])
    assert [Record.model_validate(record).index for record in made["genome"]] == [0]
    assert child["steps"] == 2
    assert set(child["metrics"]) == {"val_loss", "val_accuracy"}
    expected = outputs(breeder)
    other = Breeder.from_config(load_search(search_config(tmp_path)))
    again = other.make(order(1, genome=made["genome"], weights=child["weights"], again=True), blobs)
    assert again["key"] == made["key"]
    assert torch.equal(outputs(other), expected)


def test_a_grandchild_has_the_records_of_its_ancestors(breeder, blobs):
    _, trained = bred(breeder, blobs, individual=0)
    made, child = bred(breeder, blobs, individual=1, genome=[], weights=trained["weights"], edits=[["widen", "1"]])
    more, _ = bred(
        breeder, blobs, individual=2, genome=made["genome"], weights=child["weights"], edits=[["deepen", "1"]]
    )
    assert [(record["index"], record["operator"]) for record in more["genome"]] == [(0, "widen"), (1, "deepen")]


def test_an_edit_is_made_in_its_region(breeder, blobs):
    _, trained = bred(breeder, blobs, individual=0)
    names = [name for name, _ in breeder.subject.model.named_modules()]
    sites = {}
    for region in ("1", "2", "3"):
        made = breeder.make(order(1, genome=[], weights=trained["weights"], edits=[["widen", region]]), blobs)
        sites[region] = made["genome"][0]["site"] if "genome" in made else made["refused"]
    assert names.index(sites["1"]) < names.index(sites["2"])
    assert sites["3"] == "there is no site for 'widen' in region 3 of 3"


def test_limits_refuse_a_child(tmp_path, blobs):
    breeder = Breeder.from_config(load_search(search_config(tmp_path, limits={"params": 250})))
    _, trained = bred(breeder, blobs, individual=0)
    made = breeder.make(order(1, genome=[], weights=trained["weights"], edits=[["widen", "1"]]), blobs)
    assert made["refused"] == "The limit of 250 parameters would be passed: the mutated model has 435."


def test_two_parents_give_the_edits_of_both_and_the_weights_of_the_first(breeder, blobs):
    _, trained = bred(breeder, blobs, individual=0)
    genomes, weights = [], []
    for individual, edit in ((1, ["widen", "1"]), (2, ["widen", "2"])):
        made, child = bred(breeder, blobs, individual=individual, genome=[], weights=trained["weights"], edits=[edit])
        genomes.append(made["genome"])
        weights.append(child["weights"])
    breeder.make(order(3, genome=genomes[0], weights=weights[0]), blobs)
    first = outputs(breeder)
    crossed = breeder.make(order(4, genome=genomes[0], weights=weights[0], other=genomes[1]), blobs)
    assert [record["site"] for record in crossed["genome"]] == [genomes[0][0]["site"], genomes[1][0]["site"]]
    assert crossed["edits"] == [["widen", "2"]]
    assert torch.allclose(outputs(breeder), first, atol=1e-6)


def test_what_a_child_shares_with_its_parent_is_written_once(breeder, blobs):
    for parameter in list(breeder.subject.model.parameters())[:-2]:  # all but the head
        parameter.requires_grad = False
    _, trained = bred(breeder, blobs, individual=0)
    _, longer = bred(breeder, blobs, individual=0, genome=[], weights=trained["weights"], again=True)
    assert longer["weights"][:-1] == trained["weights"]
    sizes = [len(blobs.read(name)) for name in longer["weights"]]
    assert sizes[1] < sizes[0] / 2
    held = read_weights(longer["weights"], blobs)
    assert all(torch.equal(held[name], tensor) for name, tensor in breeder._child.model.state_dict().items())


def test_training_that_diverges_is_an_answer(breeder, blobs, monkeypatch):
    breeder.make(order(0), blobs)
    monkeypatch.setattr(functional, "cross_entropy", lambda *args, **options: args[0].sum() * float("nan"))
    failed = breeder.train(order(0), blobs)["failed"]
    assert failed.startswith("diverged: ")


def test_memory_that_runs_out_is_an_answer(breeder, blobs, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    breeder.make(order(0), blobs)
    monkeypatch.setattr(breeding, "train_step", full)
    assert breeder.train(order(0), blobs)["failed"].startswith("memory ran out: ")


def test_a_child_has_so_much_time_and_no_more(breeder, blobs):
    breeder.make(order(0), blobs)
    assert breeder.train(order(0, seconds=1e-9), blobs)["failed"].startswith("its 1e-09 seconds were over after 1 step")


def test_length_is_in_budgets_of_a_child(breeder, blobs):
    breeder.make(order(0), blobs)
    assert breeder.train(order(0, length=3.0), blobs)["steps"] == 6


def test_shaking_keeps_the_structure(breeder, blobs):
    root, trained = bred(breeder, blobs, individual=0)
    plain = read_weights(trained["weights"], blobs)
    made = breeder.make(order(1, genome=[], weights=trained["weights"], edits=[["shrink_perturb", ""]]), blobs)
    assert made["key"] == root["key"]
    shaken = breeder._child.model.state_dict()
    ratio = [
        torch.dot(shaken[n].flatten(), plain[n].flatten()) / plain[n].square().sum() for n in plain if "weight" in n
    ]
    assert 0.3 < float(torch.stack(ratio).mean()) < 0.55
