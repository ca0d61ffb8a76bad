"""`evolve.save` and `evolve.restore`: a loop of one's own goes on in another process, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import own_loop
from helpers.fingerprints import fingerprint
from torch import nn
from torch.optim.swa_utils import AveragedModel

import evolve
from evolve.errors import CheckpointError, EvolveError, NonFiniteModelError

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["groups", "two"])
def test_another_process_goes_on_bit_for_bit(tmp_path, kind):
    model, optimizer, ema, records = own_loop.first_half(kind)
    evolve.save(tmp_path / "saved", model, optimizer, records, ema=ema)
    ended = own_loop.second_half(model, optimizer, ema)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "helpers.own_loop", str(tmp_path / "saved"), kind],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{ended} {['', 'body', 'head', '']}"


@pytest.fixture
def saved(tmp_path):
    model, optimizer, ema, records = own_loop.first_half("groups")
    evolve.save(tmp_path / "saved", model, optimizer, records, ema=ema)
    return tmp_path / "saved"


def test_a_folder_holds_json_lines_and_safetensors_of_one_mode(saved):
    assert {file.name for file in saved.iterdir()} == {
        *("lineage.jsonl", "manifest.json", "model.safetensors", "state.pt")
    }
    (saved.parent / "plain").touch()
    assert {file.stat().st_mode for file in saved.iterdir()} == {(saved.parent / "plain").stat().st_mode}
    (saved.parent / "plain").unlink()
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_restored_records_are_saved_again_and_go_on(saved):
    model, optimizer, ema = own_loop.parts("groups")
    records = evolve.restore(saved, model, optimizer, ema=ema)
    result = evolve.mutate(model.head, "deepen", site="0", optimizer=optimizer, example_inputs=torch.randn(4, 8))
    evolve.save(saved, model, optimizer, [*records, result.record])
    fresh, other, _ = own_loop.parts("groups")
    again = evolve.restore(saved, fresh, other)
    assert [record.root for record in again] == ["", "body", "head", "", "head"]
    assert [record.index for record in again] == [0, 1, 2, 3, 4]
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_without_an_optimizer_the_model_alone_comes_back(saved):
    model, _, _ = own_loop.parts("groups")
    evolve.restore(saved, model, None)
    assert model.body[0].out_features == 24
    evolve.save(saved, model, None, evolve.restore(saved, own_loop.parts("groups")[0], None))


def test_an_averaged_model_of_torch_follows(tmp_path):
    def built():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), AveragedModel(model)

    model, optimizer, averaged = built()
    x = torch.randn(8, 4)
    record = evolve.mutate(model, "widen", site="0", optimizer=optimizer, example_inputs=x, seed=1).record
    evolve.replay(averaged.module, [record])
    model(x).sum().backward()
    optimizer.step()
    averaged.update_parameters(model)
    evolve.save(tmp_path / "saved", model, optimizer, [record], ema=averaged)
    model, optimizer, fresh = built()
    evolve.restore(tmp_path / "saved", model, optimizer, ema=fresh)
    assert torch.equal(fresh(x), averaged(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model, optimizer: (nn.Sequential(nn.Linear(6, 8)), None), "does not fit|no submodule|does not have"),
        (lambda model, optimizer: (model, torch.optim.SGD(model.parameters(), lr=0.1)), "groups"),
        (lambda model, optimizer: (model, [optimizer, torch.optim.SGD(model.head.parameters(), lr=0.1)]), "optimizers"),
    ],
    ids=["another model", "other groups", "two optimizers"],
)
def test_what_does_not_fit_leaves_everything_as_it_was(saved, change, words):
    model, optimizer, ema = own_loop.parts("groups")
    model, optimizer = change(model, optimizer)
    first = optimizer[0] if isinstance(optimizer, list) else optimizer
    before, averages = fingerprint(model, first), {name: value.clone() for name, value in ema.shadow.items()}
    with pytest.raises(EvolveError, match=words):
        evolve.restore(saved, model, optimizer, ema=ema)
    assert fingerprint(model, first) == before
    assert all(torch.equal(ema.shadow[name], value) for name, value in averages.items())


@pytest.mark.parametrize("forgotten", [1, 2, 3])  # without the base model nothing tells that there was one before
def test_records_that_do_not_lead_to_the_model_are_refused(tmp_path, forgotten):
    model, optimizer, _, records = own_loop.first_half("groups")
    del records[forgotten]
    with pytest.raises(CheckpointError, match="do not lead to this model"):
        evolve.save(tmp_path / "saved", model, optimizer, records)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["weight", "average"])
def test_nothing_that_is_not_finite_is_saved(saved, place, value):
    model, optimizer, ema, records = own_loop.first_half("groups")
    before = (saved / "manifest.json").read_bytes()
    tensor = ema.shadow["body.0.weight"] if place == "average" else model.body[0].weight.data
    tensor[0, 0] = value
    with pytest.raises(NonFiniteModelError, match=r"body\.0\.weight"):
        evolve.save(saved, model, optimizer, records, ema=ema)
    assert (saved / "manifest.json").read_bytes() == before


def test_a_mask_of_minus_infinity_is_saved(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    evolve.save(tmp_path / "saved", model, None, [])
    fresh = nn.Sequential(nn.Linear(2, 2))
    fresh.register_buffer("mask", torch.zeros(3, 3))
    evolve.restore(tmp_path / "saved", fresh, None)
    assert torch.equal(fresh.mask, model.mask)
    model.mask[0, 0] = float("nan")
    with pytest.raises(NonFiniteModelError, match="mask"):
        evolve.save(tmp_path / "saved", model, None, [])


def test_a_folder_of_somebody_elses_is_not_replaced(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="not written by evolve"):
        evolve.save(tmp_path / "letters", nn.Linear(2, 2), None, [])
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear"
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        evolve.restore(tmp_path / "letters", nn.Linear(2, 2), None)


def test_a_save_that_was_killed_between_two_renames_leaves_the_old_one(saved, monkeypatch):
    model, optimizer, ema, records = own_loop.first_half("groups")
    replace = os.replace

    def killed(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        evolve.save(saved, model, optimizer, records, ema=ema)
    monkeypatch.undo()
    assert not saved.exists()
    assert len(evolve.restore(saved, *own_loop.parts("groups")[:2])) == 4
    evolve.save(saved, model, optimizer, records, ema=ema)
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]
