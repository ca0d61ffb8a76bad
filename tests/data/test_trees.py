"""Batches that are trees: taken apart, cut, joined, and counted."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from evolve.data import count_samples, join, map_tensors, take, tensors_of
from evolve.data.trees import is_ragged
from evolve.errors import DataError

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Record:
    x: torch.Tensor
    rest: dict


def rows(n=4):
    return torch.arange(n * 2.0).reshape(n, 2)


def detection(sizes):
    images = [torch.full((3, 4, size), float(size)) for size in sizes]
    return images, [{"boxes": torch.zeros(size, 4), "labels": torch.full((size,), size)} for size in sizes]


TREES = {
    "tensor": rows,
    "pair": lambda: (rows(), torch.arange(4)),
    "list": lambda: [rows(), torch.arange(4)],
    "dict": lambda: {"input_ids": rows(), "labels": torch.arange(4), "name": "kept"},
    "named": lambda: Point(rows(), torch.arange(4)),
    "nested": lambda: ((rows(), {"mask": rows() > 1}), torch.arange(4)),
    "dataclass": lambda: Record(rows(), {"y": torch.arange(4)}),
    "encoding": lambda: BatchEncoding({"input_ids": rows(), "attention_mask": rows() > 0}),
    "output": lambda: BaseModelOutput(last_hidden_state=rows()),
}


@pytest.mark.parametrize("form", TREES)
def test_trees_are_cut_and_joined_in_their_own_form(form):
    tree = TREES[form]()
    assert count_samples(tree) == 4
    assert not is_ragged(tree)
    joined = join([take(tree, 3), take(tree, 1)])
    assert type(joined) is type(tree)
    before, after = dict(tensors_of(tree)), dict(tensors_of(joined))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], torch.cat([tensor[:3], tensor[:1]]))
    assert not form.startswith("dict") or joined["name"] == "kept"


def test_how_a_tensor_is_reached():
    assert [name for name, _ in tensors_of(TREES["nested"]())] == ["[0][0]", "[0][1]['mask']", "[1]"]
    doubled = map_tensors(TREES["named"](), lambda tensor: tensor * 2)
    assert torch.equal(doubled.x, rows() * 2)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_ragged_batch_is_counted_cut_and_joined_sample_by_sample(kind):
    assert count_samples(kind(map(kind, detection([3, 3])))) == 2  # as many boxes as channels: rows would say 3
    batch = kind(map(kind, detection([3, 3, 5])))
    assert count_samples(batch) == 3
    images, _ = take(batch, 2)
    assert [tuple(image.shape) for image in images] == [(3, 4, 3), (3, 4, 3)]
    joined = join([batch, detection([6])])
    assert type(joined) is kind
    assert [len(target["boxes"]) for target in joined[1]] == [3, 3, 5, 6]
    assert count_samples((detection([2, 7])[0], [torch.zeros(2, 4), torch.zeros(7, 4)])) == 2


def test_what_cannot_be_counted_or_joined():
    with pytest.raises(DataError, match=r"batch\[0\] has 4, batch\[1\] has 3"):
        count_samples((rows(4), rows(3)))
    with pytest.raises(DataError, match="this str has none"):
        count_samples("text")
    with pytest.raises(DataError, match=r"batch\['x'\]: \(4, 2\), \(4, 3\)"):
        join([{"x": rows()}, {"x": torch.zeros(4, 3)}])
    with pytest.raises(DataError, match=r"only one of them has batch\['y'\]"):
        join([{"x": rows()}, {"x": rows(), "y": rows()}])
