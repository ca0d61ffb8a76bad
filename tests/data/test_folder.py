"""Images as people have them: modes of more and fewer bits, what tools leave behind, links, damage."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from evolve.data import build_data
from evolve.errors import DataError

GRAY = np.linspace(0, 1, 16).reshape(4, 4)  # black to white
BYTES = np.round(GRAY * 255).astype(np.uint8)


def save(folder, name, image):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)


def plain(value=100, mode="RGB"):
    return Image.new(mode, (4, 4), value)


@pytest.fixture
def root(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            save(tmp_path / part / name, "1.png", plain())
    return tmp_path


def load(root, **options):
    return build_data("image_folder", options={"root": str(root), **options})


def gray16(scale=65535):
    return Image.fromarray(np.round(GRAY * scale).astype(np.uint16))


def with_alpha(mode):
    alpha = Image.new("L", (4, 4), 128)
    image = Image.fromarray(BYTES).convert("RGB" if mode == "RGBA" else "L")
    image.putalpha(alpha)
    return image


def palette(transparent):
    image = Image.fromarray(BYTES).quantize(256)
    if transparent:
        image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize(
    ("name", "image", "tolerance"),
    [
        ("a.png", lambda: Image.fromarray(BYTES), 0),
        ("a.png", gray16, 0),
        ("a.tif", gray16, 0),
        ("a.tif", lambda: Image.fromarray(np.round(GRAY * 65535).astype(np.int32)), 0),
        ("a.tif", lambda: Image.fromarray(np.round(GRAY * 65535).astype(">u2")), 0),
        ("a.tif", lambda: Image.fromarray(GRAY.astype(np.float32)), 0),
        ("a.tif", lambda: Image.fromarray((GRAY * 255).astype(np.float32)), 0),
        ("a.png", lambda: with_alpha("LA"), 0),
        ("a.png", lambda: with_alpha("RGBA"), 0),
        ("a.png", lambda: palette(transparent=False), 0),
        ("a.png", lambda: palette(transparent=True), 0),
        ("a.tif", lambda: Image.fromarray(BYTES).convert("RGB").convert("CMYK"), 1),
        ("a.jpg", lambda: Image.fromarray(BYTES).convert("RGB").convert("CMYK"), 12),
        ("a.png", lambda: Image.fromarray(BYTES >= 128), 127),
    ],
)
def test_every_mode_becomes_bytes_of_rgb(name, image, tolerance, root):
    save(root / "train" / "cat", name, image())
    os.remove(root / "train" / "cat" / "1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(root)
    pixels = data.train.inputs[0]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 4, 4)
    assert (pixels.int() - torch.from_numpy(BYTES).int()).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 4), 70000, np.int32), "70000"),
        (np.full((4, 4), -3, np.int32), "-3"),
        (np.full((4, 4), 1e4, np.float32), "10000"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
    ],
)
def test_values_that_nobody_can_scale_are_told(values, words, root):
    save(root / "train" / "cat", "odd.tif", Image.fromarray(values))
    with pytest.raises(DataError, match=rf"odd\.tif' holds values .*{words}"):
        load(root)


@pytest.mark.parametrize("left", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "__pycache__"])
def test_what_tools_leave_is_no_class(left, root):
    for part in ("train", "val"):
        save(root / part / left, "1.png", plain(0))
        save(root / part / "cat" / left, "1.png", plain(0))
        (root / part / "cat" / "._1.png").write_bytes(b"resource fork")
        (root / part / "cat" / "notes.txt").write_text("no image")
    data = load(root)
    assert (data.num_classes, data.train.samples, data.val.samples) == (2, 2, 2)
    for name in ("cat", "dog"):
        save(root / "train" / name, "2.png", plain())
    assert load(root / "train", val_fraction=0.5).num_classes == 2


@pytest.mark.parametrize("name", ["b.JPG", "b.Jpeg", "b.PNG", "b.TIFF", "b.WEBP"])
def test_endings_in_capitals(name, root):
    save(root / "train" / "cat", name, plain())
    assert load(root).train.samples == 3


def test_links_are_followed_once(root):
    outside = root / "elsewhere"
    save(outside, "linked.png", plain())
    (root / "train" / "cat" / "more").symlink_to(outside)
    (root / "train" / "cat" / "loop").symlink_to(root / "train" / "cat")
    (root / "train" / "cat" / "file.png").symlink_to(outside / "linked.png")
    assert load(root).train.samples == 4
    (root / "train" / "cat" / "dangling.png").symlink_to(root / "gone.png")
    with pytest.raises(DataError, match=r"dangling\.png"):
        load(root)


def test_samples_are_sorted_by_class_and_name(root):
    for index in (3, 2):
        save(root / "train" / "dog", f"{index}.png", plain((index, 0, 0)))
    data = load(root)
    assert data.train.targets.tolist() == [0, 1, 1, 1]
    assert data.train.inputs[:, 0, 0, 0].tolist() == [100, 100, 2, 3]


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff\xe0 cut", b"GIF89a"])
def test_a_damaged_image_is_named(damage, root):
    (root / "train" / "cat" / "broken.png").write_bytes(damage)
    with pytest.raises(DataError, match=r"Cannot read the image '.*broken\.png'.*Repair or remove"):
        load(root)


def test_a_truncated_image_is_named(root):
    file = root / "train" / "cat" / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\.png"):
        load(root)


def test_classes_without_images_and_other_classes(root):
    (root / "train" / "bird").mkdir()
    with pytest.raises(DataError, match=r"without an image: bird"):
        load(root)
    save(root / "train" / "bird", "1.png", plain())
    save(root / "val" / "fish", "1.png", plain())
    with pytest.raises(DataError, match=r"same classes; only one has bird \(in train\), fish \(in val\)"):
        load(root)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": -3}, "image_size"),
        ({"mean": [0.5]}, "three numbers"),
        ({"std": [0.0, 1.0, 1.0]}, "greater than 0"),
        ({"val_fraction": 1.5}, "between 0 and 1"),
    ],
)
def test_options_that_make_no_sense(options, words, root):
    with pytest.raises(DataError, match=words):
        load(root / "train" if "val_fraction" in options else root, **options)
