"""Batches of other forms than (inputs, targets): dicts, trees, ragged lists; and how their samples are drawn."""

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.runs import digest, stop_after
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from evolve import Evolver, TrainingConfig
from evolve.data import IterableBatches, LoaderBatches, TensorBatches, as_batches, build_data, tensors_of
from evolve.data.order import balanced_order
from evolve.errors import DataError, UnknownNameError
from evolve.evolver.run_config import DataConfig


class Pictures(Dataset):
    """Images of different sizes with as many boxes as they are high; transforms draw at random."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        size = 2 + index % 3
        return torch.rand(3, size, size) + random.random(), {
            "boxes": torch.zeros(size, 4),
            "labels": torch.tensor(index),
        }


class Columns(Dataset):
    """Reads many samples at a time, as Hugging Face's data sets do."""

    def __init__(self):
        self.reads = []

    def __len__(self):
        return 9

    def __getitem__(self, index):
        raise AssertionError("one by one")

    def __getitems__(self, indices):
        self.reads.append(list(indices))
        return [{"x": torch.rand(2), "labels": index} for index in indices]


def lists(samples):
    return tuple(map(list, zip(*samples, strict=True)))


def padded(samples):
    longest = max(len(sample) for sample in samples)
    ids = torch.stack([torch.nn.functional.pad(sample, (0, longest - len(sample))) for sample in samples])
    return {"input_ids": ids, "attention_mask": ids > 0}


def flat(batches):
    return [tensor for batch in batches for _, tensor in tensors_of(batch)]


def same(one, other):
    one, other = flat(one), flat(other)
    return len(one) == len(other) and all(map(torch.equal, one, other))


@dataclass
class Record:
    x: object
    y: object


TOKENS = torch.arange(20).reshape(10, 2)
STORED = {
    "dict": {"input_ids": TOKENS, "labels": torch.arange(10)},
    "arrays": {"input_ids": TOKENS.numpy(), "labels": np.arange(10)},
    "two inputs": ((TOKENS, {"mask": TOKENS > 3}), torch.arange(10)),
    "three": (TOKENS, TOKENS + 1, torch.arange(10)),
    "dataclass": Record(TOKENS, np.arange(10)),
    "one": TensorDataset(TOKENS),
    "NumPy pair": (TOKENS.numpy(), np.arange(10)[::-1][::-1]),
    "three of a data set": TensorDataset(TOKENS, TOKENS, torch.arange(10)),
}


@pytest.mark.parametrize("form", STORED)
def test_stored_trees_are_cut_into_batches_of_their_form(form):
    batches = as_batches(STORED[form], 4, shuffle=True, seed=3)
    assert isinstance(batches, TensorBatches)
    assert (batches.samples, len(batches)) == (10, 3)
    whole = list(batches.epoch(1))
    assert same(whole[1:], batches.epoch(1, start=1))
    assert not same(whole, batches.epoch(2))
    names = [[name for name, _ in tensors_of(batch)] for batch in whole]
    assert names[0] == [name for name, _ in tensors_of(batches.examples(1))]
    for tensors in zip(*([tensor for _, tensor in tensors_of(batch)] for batch in whole), strict=True):
        rows = torch.cat(tensors)
        assert len(rows) == 10
        assert len(rows.flatten().unique()) in (2, 10, 20)  # every sample once; a mask has two values
    straight = as_batches(STORED[form], 4, shuffle=False)
    assert same([next(straight.epoch(0))], [straight.examples(4)])


def test_rows_of_a_tree_stay_together():
    for batch in as_batches(STORED["dict"], 4, shuffle=True).epoch(0):
        assert torch.equal(batch["input_ids"][:, 0], 2 * batch["labels"])
    for (tokens, extra), targets in as_batches(STORED["two inputs"], 4, shuffle=True).epoch(0):
        assert torch.equal(tokens[:, 0], 2 * targets)
        assert torch.equal(extra["mask"], tokens > 3)


def test_arrays_keep_their_type_and_share_memory():
    stored = np.arange(6, dtype=np.float64).reshape(3, 2)
    batches = as_batches((stored, np.array([0, 1, 0], dtype=">i4")), shuffle=False)
    assert batches.inputs.dtype == torch.float64
    assert batches.targets.tolist() == [0, 1, 0]
    stored[0, 0] = 7
    assert batches.inputs[0, 0] == 7
    stored.flags.writeable = False
    assert as_batches((stored, stored), shuffle=False).inputs.tolist() == stored.tolist()


def test_images_without_targets_are_prepared_and_trees_are_not():
    images = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    alone = TensorBatches(images, None, 2, shuffle=False)
    assert next(alone.epoch(0)).unique().tolist() == [1.0]
    tree = TensorBatches({"image": images}, None, 2, shuffle=False)
    assert next(tree.epoch(0))["image"].dtype == torch.uint8
    with pytest.raises(DataError, match=r"one tensor, not a dict with the keys image"):
        TensorBatches({"image": images}, None, 2, shuffle=False, normalise=torch.Tensor.float)


def test_ragged_batches_pass_through_and_resume():
    batches = as_batches(Pictures(), 3, shuffle=True, seed=1, collate_fn=lists)
    whole = list(batches.epoch(2))
    assert [len(images) for images, _ in whole] == [3, 4]
    assert same(whole[1:], batches.epoch(2, start=1))
    assert same(whole, as_batches(Pictures(), 3, shuffle=True, seed=1, collate_fn=lists, workers=1).epoch(2))
    images, targets = batches.examples(2)
    assert [image.shape[1] for image in images] == [2, 3]
    assert [target["labels"].item() for target in targets] == [0, 1]
    with pytest.raises(DataError, match=r"\(3, 2, 2\) and \(3, 3, 3\).*pass a collate_fn"):
        as_batches(Pictures(), 3, shuffle=False).examples(2)


def test_examples_of_a_ragged_loader_are_joined_and_cut():
    batches = IterableBatches(DataLoader(Pictures(), 3, collate_fn=lists))
    images, targets = batches.examples(5)
    assert [len(target["boxes"]) for target in targets] == [2, 3, 4, 2, 3]
    assert len(images) == 5
    assert len(batches.examples(2)[0]) == 2
    assert len(batches.examples(99)[0]) == 7


def test_examples_of_a_loader_that_pads_each_batch():
    sequences = [torch.arange(1, 2 + n) for n in (2, 3, 5, 4)]
    batches = IterableBatches(DataLoader(sequences, 2, collate_fn=padded))
    assert batches.examples(1)["input_ids"].tolist() == [[1, 2, 3, 0]]
    assert batches.examples(2)["attention_mask"].sum(1).tolist() == [3, 4]
    with pytest.raises(DataError, match=r"batch\['input_ids'\]: \(2, 4\), \(2, 6\).*pad.*batch_size of at least 3"):
        batches.examples(3)


class Graph:
    """A batch of the user's own, which is no tree."""


def test_a_batch_that_cannot_be_counted_is_an_example_as_a_whole():
    batches = IterableBatches(DataLoader(range(4), 2, collate_fn=lambda _: Graph()))
    assert isinstance(batches.examples(1), Graph)
    assert batches.examples(1) is batches.examples(1)
    assert [type(batch) for batch in batches.epoch(0)] == [Graph, Graph]


def test_a_data_set_that_reads_many_at_a_time():
    data = Columns()
    batches = as_batches(data, 4, shuffle=True, seed=2)
    whole = list(batches.epoch(1))
    assert [len(read) for read in data.reads] == [4, 5]
    assert [batch["labels"].tolist() for batch in whole] == data.reads
    assert same(whole[1:], batches.epoch(1, start=1))
    drawn = [batch["x"][:4] for batch in (*whole, next(batches.epoch(2)))]
    assert not any(torch.equal(one, other) for one, other in pairwise(drawn))
    assert batches.examples(2)["labels"].tolist() == [0, 1]
    assert next(as_batches(Subset(data, [3, 4]), 2, shuffle=False).epoch(0))["labels"].tolist() == [3, 4]


def test_collation_and_workers_are_refused_where_they_have_no_use():
    pair = (TOKENS, torch.arange(10))
    for data, options in (
        (pair, {"collate_fn": lists}),
        (DataLoader(TOKENS), {"collate_fn": lists}),
        (pair, {"workers": 2}),
    ):
        with pytest.raises(DataError, match="has no use here"):
            as_batches(data, shuffle=False, **options)


def test_classes_are_balanced_with_replacement_by_seed_and_epoch():
    classes = torch.tensor([5] * 900 + [2] * 90 + [9] * 10)
    order = balanced_order(classes, 1, 2)
    assert len(order) == 1000
    counts = torch.stack([(classes[order] == name).sum() for name in (5, 2, 9)])
    assert ((counts - 1000 / 3).abs() < 60).all()
    assert len(order[classes[order] == 9].unique()) == 10  # each of them, over and over
    assert torch.equal(order, balanced_order(classes, 1, 2))
    assert not torch.equal(order, balanced_order(classes, 1, 3))


class Labelled(Dataset):
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor([float(index)]), self.targets[index]


@pytest.mark.parametrize("kind", ["tensors", "data set", "part of a data set"])
def test_samplers(kind):
    labels = [0] * 45 + [1] * 5
    if kind == "tensors":
        batches = TensorBatches(torch.arange(50.0)[:, None], torch.tensor(labels), 10, shuffle=True, seed=4)
    else:
        data = Labelled([3, *labels]) if kind == "part of a data set" else Labelled(labels)
        data = Subset(data, range(1, 51)) if kind == "part of a data set" else data
        batches = LoaderBatches(data, 10, shuffle=True, seed=4)
    balanced, stored = batches.drawn("balanced"), batches.drawn("sequential")
    targets = torch.cat([y for _, y in balanced.epoch(0)])
    assert len(targets) == 50
    assert 12 <= targets.sum() <= 38
    assert same(list(balanced.epoch(3))[2:], balanced.epoch(3, start=2))
    assert torch.cat([y for _, y in stored.epoch(3)]).tolist() == labels
    assert same(balanced.drawn("shuffle").epoch(3), batches.epoch(3))
    assert same([stored.examples(3)], [balanced.examples(3)])


def test_a_run_with_balanced_classes_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    stored = TensorBatches(inputs, (torch.arange(40) < 4).long(), 8, shuffle=True, seed=2)

    def evolver(folder):
        torch.manual_seed(1)
        training = TrainingConfig(epochs=3, device="cpu")
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        data = (stored.drawn("balanced"), stored.drawn("sequential"))
        return Evolver(model, *data, training=training, output=tmp_path / folder, progress=False)

    whole = evolver("whole")
    whole.run()
    stop_after(evolver("stopped"), 7).run()
    resumed = evolver("stopped").restore()
    assert (resumed.state.epoch, resumed.state.batch) == (1, 2)
    resumed.run()
    assert digest(resumed.model.state_dict()) == digest(whole.model.state_dict())


def own_pictures():
    return Pictures(), Pictures()


def own_dicts():
    return STORED["dict"], STORED["dict"]


def own_labelled():
    return Labelled([0] * 9 + [1]), Labelled([0, 1])


def own_loaders():
    return DataLoader(Labelled([0, 1]), 2), DataLoader(Labelled([0, 1]), 2)


def config(**keys):
    return DataConfig.model_validate(keys)


def test_keys_of_the_configuration():
    data = config(name=f"{__name__}:own_pictures", collate=f"{__name__}:lists", batch_size=3, workers=1).build(5)
    assert isinstance(data.train, LoaderBatches)
    assert data.train.workers == data.val.workers == 1
    assert [len(images) for images, _ in data.train.epoch(0)] == [3, 4]
    assert data.input_shape is None
    assert config(name=f"{__name__}:own_dicts").build(5).num_classes == 10
    straight = config(name=f"{__name__}:own_labelled", sampler="sequential").build(5)
    assert next(straight.train.epoch(1))[1].tolist() == [0] * 9 + [1]
    assert next(config(name=f"{__name__}:own_labelled").build(5).train.epoch(1))[1].tolist() != [0] * 9 + [1]
    balanced = config(name=f"{__name__}:own_labelled", sampler="balanced").build(5)
    assert next(balanced.train.epoch(1))[1].sum() > 1
    assert next(balanced.val.epoch(0))[1].tolist() == [0, 1]


OWN = f"{__name__}:own_pictures"


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"name": "digits", "sampler": "ballanced"}, ValueError, "balanced"),
        ({"name": "digits", "workers": -1}, ValueError, "workers"),
        ({"name": "digits", "workers": 2}, DataError, "not read by workers"),
        ({"name": "digits", "collate": f"{__name__}:lists"}, DataError, "makes its own batches"),
        ({"name": "digits", "collate": "nowhere:collate"}, ValueError, "cannot import 'nowhere'"),
        (
            {"name": f"{__name__}:own_pictures", "sampler": "balanced", "collate": f"{__name__}:lists"},
            DataError,
            "class",
        ),
        ({"name": f"{__name__}:own_loaders", "sampler": "shuffle"}, DataError, "order of its own"),
        ({"name": "image_folder", "options": {"root": ".", "workers": 2}}, ValueError, "set by evolve"),
    ],
)
def test_keys_that_make_no_sense(keys, error, words):
    with pytest.raises((error, UnknownNameError), match=words):
        config(**keys).build(0)


def test_a_misspelt_sampler_is_told():
    with pytest.raises(DataError, match=r"no sampler 'ballanced'\. Did you mean 'balanced'"):
        build_data("digits", sampler="ballanced")
