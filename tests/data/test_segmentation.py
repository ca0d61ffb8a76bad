"""Images with masks of class numbers: matched by name, resized, ignored borders, damage."""

import numpy as np
import pytest
import torch
from PIL import Image

from evolve.data import LoaderBatches, TensorBatches, build_data
from evolve.errors import DataError

MASK = np.array([[0, 0, 1, 1], [0, 255, 2, 1], [0, 0, 2, 2]], dtype=np.uint8)  # 4 wide and 3 high


def save(folder, stem, color, mask=MASK, ending="png"):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), color).save(folder / "images" / f"{stem}.{ending}")
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    mask.save(folder / "masks" / f"{stem}.{'tif' if mask.mode == 'I' else 'png'}")


@pytest.fixture
def root(tmp_path):
    for number in range(5):
        save(tmp_path, f"im{number}", (number, 200, 7), ending="bmp")
    return tmp_path


def load(root, **options):
    return build_data("segmentation_folder", batch_size=2, options={"root": str(root), **options})


def test_images_and_masks_go_together(root):
    save(root, "im9", (9, 0, 0), (MASK == 1).astype(np.uint8))
    data = load(root, val_fraction=0.34)
    assert (data.train.samples, data.val.samples, data.num_classes, data.input_shape) == (4, 2, 3, (3, 3, 4))
    assert isinstance(data.train, TensorBatches)
    for batches in (data.train, data.val):
        for pixels, mask in zip(batches.inputs, batches.targets, strict=True):
            assert mask.dtype == torch.int64
            expected = (MASK == 1) if pixels[0, 0, 0] == 9 else MASK
            assert mask.tolist() == expected.astype(int).tolist()
    images, masks = next(data.val.epoch(0))
    assert (images.dtype, images.shape, masks.shape) == (torch.float32, (2, 3, 3, 4), (2, 3, 4))


def test_what_does_not_fit_in_memory_is_read(root):
    stored, read = load(root), load(root, memory_limit_mb=0)
    assert isinstance(read.train, LoaderBatches)
    for one, other in zip(stored.train.epoch(1), read.train.epoch(1), strict=True):
        assert all(map(torch.equal, one, other))


def test_a_folder_of_held_out_images(tmp_path):
    save(tmp_path / "train", "a", (1, 1, 1))
    save(tmp_path / "test", "a", (2, 2, 2))
    data = load(tmp_path)
    assert (data.train.inputs.max(), data.val.inputs.max()) == (1, 2)


def test_masks_are_resized_to_the_nearest_pixel(root):
    data = load(root, image_size=12)
    assert data.input_shape == (3, 12, 12)
    mask = data.train.targets[0]
    assert mask.unique().tolist() == [0, 1, 2, 255]
    assert torch.equal(mask[::4, ::3], torch.from_numpy(MASK.astype(np.int64)))


def palette():
    image = Image.fromarray(MASK, "L").convert("P")
    image.putdata(MASK.flatten().tolist())
    image.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0] + [1] * 759)
    return image


@pytest.mark.parametrize(
    "mask", [palette, lambda: Image.fromarray(MASK.astype(np.uint16)), lambda: Image.fromarray(MASK.astype(np.int32))]
)
def test_kinds_of_masks(mask, tmp_path):
    for stem in "ab":
        save(tmp_path, stem, (1, 1, 1), mask())
    assert load(tmp_path, val_fraction=0.5).train.targets[0].tolist() == MASK.tolist()


def test_ignored_pixels_and_numbers_of_classes(root):
    assert load(root, num_classes=7).num_classes == 7
    with pytest.raises(DataError, match=r"im\d\.png' holds 2, and 2 classes are 0 to 1 \(ignored: 255\)"):
        load(root, num_classes=2)
    with pytest.raises(DataError, match="ignore_index 2 is one of the 256 classes"):
        load(root, ignore_index=2)
    with pytest.raises(DataError, match="at least 2"):
        load(root, num_classes=1)


def test_damage_is_named(root):
    save(root, "odd", (1, 1, 1), np.zeros((3, 5), np.uint8))
    with pytest.raises(DataError, match=r"odd\.png' is 5x3 and the first image 4x3.*image_size"):
        load(root)
    Image.new("RGB", (4, 3)).save(root / "masks" / "odd.png")
    with pytest.raises(DataError, match="of mode RGB: its values are colors"):
        load(root)
    (root / "masks" / "odd.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"Cannot read the mask .*odd\.png"):
        load(root)
    (root / "masks" / "odd.png").unlink()
    with pytest.raises(DataError, match=r"'odd' has no mask \(1 such\)"):
        load(root)
    (root / "images" / "odd.bmp").unlink(missing_ok=True)
    (root / "images" / "odd.png").unlink()
    save(root, "im0", (1, 1, 1), ending="png")
    with pytest.raises(DataError, match="two files that differ in their ending alone"):
        load(root)
    with pytest.raises(DataError, match=r"no folder '.*nowhere.images'"):
        load(root / "nowhere")
