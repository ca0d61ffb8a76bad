"""Parts of batches, and what ranks are compared by, without other ranks."""

import pytest
import torch
from torch import nn

from evolve.data.trees import rows
from evolve.distributed import digest
from evolve.distributed.joining import join_ranks
from evolve.distributed.parts import part_of
from evolve.distributed.ranks import told_error
from evolve.distributed.world import World
from evolve.errors import CheckpointError, EvolveError, LostRankError, RanksDifferError


@pytest.mark.parametrize("samples", range(1, 20))
@pytest.mark.parametrize("size", [2, 3, 8])
def test_parts_cover_a_batch_once(samples, size):
    parts = [part_of(samples, rank, size) for rank in range(size)]
    taken = [index for first, end, counts in parts if counts for index in range(first, end)]
    assert taken == list(range(samples))
    assert all(end - first >= min(2, samples) for first, end, _ in parts)  # BatchNorm needs two


def test_rows_of_a_batch():
    batch = {"x": torch.arange(6), "y": (torch.arange(6) * 2, torch.tensor(7)), "name": "n"}
    found = rows(batch, 2, 4)
    assert found["x"].tolist() == [2, 3]
    assert found["y"][0].tolist() == [4, 6]
    assert found["y"][1] == 7
    ragged = ([torch.zeros(1), torch.ones(2), torch.ones(3)], [{"a": 0}, {"a": 1}, {"a": 2}])
    assert [target["a"] for target in rows(ragged, 1, 3)[1]] == [1, 2]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([{"seed": 1}, {"seed": 2}], "Rank 1 differs from rank 0 in: seed (2, not 1)."),
        ([{"seed": 1}, {"seed": 2}, {"seed": 2}], "Rank 0 differs from the others in: seed (1, not 2)."),
        ([{"a": "x", "b": "y"}, {"a": "x", "b": "z"}], "Rank 1 differs from rank 0 in: b."),
    ],
)
def test_the_rank_that_differs_is_named(found, told):
    with pytest.raises(RanksDifferError, match="not the same now") as caught:
        digest.compare(found, "now", "Do this.")
    assert told in str(caught.value)
    assert str(caught.value).endswith("Do this.")


def test_ranks_that_are_equal_pass():
    digest.compare([{"seed": 1}] * 3, "now", "")


def test_digests_see_values_shapes_and_names():
    tensor = torch.arange(6.0)
    digests = {
        digest.of_tensors(tree)
        for tree in (
            {"a": tensor},
            {"b": tensor},
            {"a": tensor.view(2, 3)},
            {"a": tensor + 1e-6},
            {"a": tensor.double()},
        )
    }
    assert len(digests) == 5
    assert digest.of_tensors({"a": tensor.clone()}) in digests
    one, other = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert digest.of_structure(one) != digest.of_structure(other)


def test_code_counts_what_classes_come_from():
    class Mine(nn.Module):
        pass

    assert digest.of_code([nn.Linear]) == digest.of_code([])  # torch counts by its version
    assert digest.of_code([Mine]) != digest.of_code([])


def test_alone_nothing_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    world = join_ranks("cpu")
    assert type(world) is World
    assert (world.first, world.together) == (True, False)
    assert world.gather(3) == [3]
    assert world.stopping(True)


def test_errors_of_rank_0_keep_their_class():
    assert type(told_error("CheckpointError", "x")) is CheckpointError
    assert type(told_error("KeyError", "x")) is EvolveError
    assert type(told_error("annotations", "x")) is EvolveError


def test_ranks_that_do_not_find_each_other_are_told(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LostRankError, match=r"did not find each other: .*RANK.*torchrun"):
        join_ranks("cpu")


@pytest.mark.parametrize(("device", "rank", "told"), [("cuda:0", 0, "Write 'cuda'"), ("cuda", 4, "there are 2")])
def test_devices_that_ranks_cannot_share_are_refused(monkeypatch, device, rank, told):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EvolveError, match=told):
        join_ranks(device)
