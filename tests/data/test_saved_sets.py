"""Folders of Hugging Face's datasets: dicts and pairs, splits, classes, padding."""

import numpy as np
import pytest
import torch

from evolve.data import build_data
from evolve.errors import DataError

datasets = pytest.importorskip("datasets")
ROWS = 20


def features():
    return datasets.Features(
        {
            "text": datasets.Value("string"),
            "input_ids": datasets.Sequence(datasets.Value("int32")),
            "score": datasets.Value("float64"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
        }
    )


def table(rows=ROWS, length=3):
    return datasets.Dataset.from_dict(
        {
            "text": [f"row {i}" for i in range(rows)],
            "input_ids": [list(range(i, i + (length or 1 + i % 3))) for i in range(rows)],
            "score": [i / 2 for i in range(rows)],
            "label": [int(i % 4 == 0) for i in range(rows)],
        },
        features=features(),
    )


def load(path, keys=None, **options):
    return build_data("huggingface", batch_size=4, options={"path": str(path), **options}, **(keys or {}))


@pytest.fixture
def whole(tmp_path):
    table().save_to_disk(tmp_path / "whole")
    return tmp_path / "whole"


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [torch.nn.functional.pad(row["input_ids"], (0, longest - len(row["input_ids"]))) for row in rows]
    return {"input_ids": torch.stack(ids), "labels": torch.stack([row["label"] for row in rows])}


def test_dicts_of_the_columns_that_hold_numbers(whole, caplog):
    with caplog.at_level("INFO"):
        data = load(whole)
    assert "hold no numbers are left out of the batches: text" in caplog.text
    assert (data.train.samples, data.val.samples) == (16, 4)
    assert (data.num_classes, data.class_names, data.input_shape) == (2, ("bad", "good"), (3,))
    batch = data.val.examples(4)
    assert set(batch) == {"input_ids", "score", "label"}
    for seed in range(4):  # of every class
        assert load(whole, split_seed=seed).val.examples(4)["label"].sum() == 1
    assert torch.equal(batch["input_ids"][:, 0].float(), batch["score"] * 2)
    assert (batch["input_ids"].dtype, batch["score"].dtype) == (torch.int64, torch.float32)
    seen = torch.cat([batch["input_ids"][:, 0] for part in (data.train, data.val) for batch in part.epoch(0)])
    assert seen.sort().values.tolist() == list(range(ROWS))


def test_pairs_in_the_order_of_seed_and_epoch(whole):
    data = load(whole, inputs="input_ids", targets="label")
    first = list(data.train.epoch(3))
    again = list(load(whole, inputs="input_ids", targets="label").train.epoch(3, start=1))
    assert all(
        torch.equal(a, b) for one, other in zip(first[1:], again, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert all(torch.equal((x[:, 0] % 4 == 0).long(), y) for x, y in first)
    balanced = load(whole, {"sampler": "balanced"}, inputs="input_ids", targets="label")
    assert 4 <= torch.cat([y for _, y in balanced.train.epoch(0)]).sum() <= 12
    assert load(whole, columns=["score"]).train.examples(2).keys() == {"score"}


def test_splits(tmp_path):
    parts = {"train": table(8), "test": table(5), "extra": table(3)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    data = load(tmp_path / "parts")
    assert (data.train.samples, data.val.samples) == (8, 5)
    assert load(tmp_path / "parts", val_split="extra").val.samples == 3
    with pytest.raises(DataError, match=r"no split 'extr'.*Did you mean 'extra'.*There are: train, test, extra"):
        load(tmp_path / "parts", val_split="extr")
    datasets.DatasetDict({"train": table(8)}).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="No split is held out; there are: train"):
        load(tmp_path / "one")


def test_sequences_are_padded_by_a_function(tmp_path):
    table(length=None).save_to_disk(tmp_path / "ragged")
    with pytest.raises(DataError, match="collate_fn"):
        load(tmp_path / "ragged").train.examples(4)
    data = load(tmp_path / "ragged", {"collate": f"{__name__}:padded"})
    batch = data.train.examples(4)
    lengths = [len(row) for row in table(length=None)["input_ids"]]
    assert set(lengths) == {1, 2, 3}
    assert batch["input_ids"].shape == (4, 3)
    assert (batch["input_ids"] == 0).any(1).any()
    assert batch["labels"].shape == (4,)


def test_images(tmp_path):
    pixels = [np.full((4, 5, 3), value, np.uint8) for value in (0, 255, 51)]
    stored = datasets.Dataset.from_dict(
        {"image": pixels, "label": [0, 1, 0]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    datasets.DatasetDict({"train": stored, "val": stored}).save_to_disk(tmp_path / "images")
    data = load(tmp_path / "images", inputs="image", targets="label")
    images, labels = data.val.examples(3)
    assert images.shape == (3, 3, 4, 5)
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0, 1, 0.2])
    assert labels.tolist() == [0, 1, 0]
    assert data.input_shape == (3, 4, 5)


def test_what_does_not_fit_is_told(whole, tmp_path, monkeypatch):
    for options, words in (
        ({"columns": ["scor"]}, r"no column 'scor'.*Did you mean 'score'"),
        ({"inputs": "score"}, "Name inputs and targets"),
        ({"inputs": "score", "targets": "label", "columns": ["score"]}, "Name inputs and targets"),
    ):
        with pytest.raises(DataError, match=words):
            load(whole, **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="save_to_disk"):
        load(tmp_path / "empty")
    with pytest.raises(DataError, match="There is no folder"):
        load(tmp_path / "absent")
    table().select_columns(["text"]).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match="No column holds numbers"):
        load(tmp_path / "text")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install datasets, or pip install 'evolve-torch\[huggingface\]'"):
        load(whole)
