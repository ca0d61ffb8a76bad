"""Arrays in .npz files and folders of .npy files: names, types, splits, refusals."""

import numpy as np
import pytest
import torch

from evolve.data import build_data
from evolve.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
LABELS = (np.arange(20) % 4).astype(np.int32)
ARRAYS = {"x": IMAGES, "y": LABELS, "more": RNG.normal(size=(20, 3)), "scores": RNG.normal(size=(20, 2))}


@pytest.fixture(params=["file", "folder"])
def path(request, tmp_path):
    if request.param == "file":
        np.savez(tmp_path / "data.npz", **ARRAYS)
        return str(tmp_path / "data.npz")
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
    return str(tmp_path)


def load(path, **options):
    return build_data("numpy", batch_size=5, options={"path": path, **options})


def test_images_and_classes(path):
    data = load(path)
    assert (data.train.samples, data.val.samples) == (16, 4)
    assert (data.num_classes, data.num_outputs, data.input_shape) == (4, 4, (1, 4, 4))
    assert data.val.targets.sort().values.tolist() == [0, 1, 2, 3]  # of every class
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.targets.dtype == torch.int64
    rows = torch.cat([data.train.inputs, data.val.inputs])
    assert torch.equal(rows.flatten(1).sort(0).values, torch.from_numpy(IMAGES).flatten(1).sort(0).values)
    assert data.train.example(3).max() <= 1


def test_regression_and_several_inputs(path):
    data = load(path, inputs=["x", "more"], targets="scores")
    (images, more), scores = data.train.examples(2)
    assert {images.dtype, more.dtype, scores.dtype} == {torch.float32}
    assert 0 <= images.min() <= images.max() <= 1
    assert (data.num_classes, data.num_outputs, data.input_shape) == (None, 2, None)
    row = np.abs(ARRAYS["more"] - more[0].numpy()).sum(1).argmin()
    torch.testing.assert_close(scores[0], torch.from_numpy(ARRAYS["scores"][row]).float())


def test_inputs_alone_and_held_out_arrays(path):
    alone = load(path, targets=None)
    assert alone.train.examples(3).shape == (3, 1, 4, 4)
    named = load(path, val_inputs="x", val_targets="y")
    assert (named.train.samples, named.val.samples) == (20, 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": "z"}, r"no array 'z'.*There are: .*scores"),
        ({"inputs": "mor"}, "Did you mean 'more'"),
        ({"inputs": []}, "list of inputs is empty"),
        ({"val_inputs": "x"}, "go together"),
        ({"val_targets": "y"}, "go together"),
        ({"val_fraction": 1.0}, "leaves|between"),
    ],
)
def test_names_that_do_not_fit(path, options, words):
    with pytest.raises(DataError, match=words):
        load(path, **options)


def test_files_that_hold_something_else(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object), y=np.array(["a"]), n=np.array(3))
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "text.npz").write_text("nothing")
    for name, options, words in (
        ("objects.npz", {}, "Cannot read the array 'x'"),
        ("objects.npz", {"inputs": "y"}, "Turn text into class numbers"),
        ("objects.npz", {"inputs": "n"}, "single number"),
        ("x.npy", {}, "holds a single array.*inputs to 'x'"),
        ("broken.npz", {}, "Cannot read"),
        ("text.npz", {}, "Cannot read"),
        ("absent.npz", {}, "There is no"),
    ):
        with pytest.raises(DataError, match=words):
            load(str(tmp_path / name), **options)


def test_different_lengths_are_told(tmp_path):
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    with pytest.raises(DataError, match=r"batch\[0\] has 3, batch\[1\] has 4"):
        load(str(tmp_path / "odd.npz"))
