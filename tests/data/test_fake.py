"""Made-up data: the same for the same seed, of the form it says, and learnable."""

import pytest
import torch

from evolve.data import build_data, count_samples, tensors_of
from evolve.errors import DataError

NAMES = ["fake_detection", "fake_segmentation", "fake_multilabel", "fake_two_inputs", "fake_tokens"]


def parts(data):
    return [tensor for part in (data.train, data.val) for _, tensor in tensors_of(part.examples(part.samples))]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_the_same_data_and_another_seed_other(name):
    def make(seed):
        return build_data(name, batch_size=4, seed=seed, options={"samples": 12})

    one = make(1)
    before = torch.get_rng_state()
    assert all(map(torch.equal, parts(one), parts(make(1))))
    assert torch.equal(torch.get_rng_state(), before)
    other = make(2)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=False))
    assert one.train.samples == 12
    assert [count_samples(batch) for batch in one.train.epoch(0)] == [4, 4, 4]


def test_boxes_are_where_the_colors_are():
    data = build_data("fake_detection", options={"samples": 20, "max_objects": 1, "image_size": 32})
    assert (data.num_classes, data.class_names[0], len(data.class_names)) == (4, "background", 4)
    images, targets = data.train.examples(20)
    colors = {1: [], 2: [], 3: []}
    for image, target in zip(images, targets, strict=True):
        assert image.shape == (3, 32, 32)
        assert 0 <= image.min() <= image.max() <= 1
        (box,), (label,) = target["boxes"].int().tolist(), target["labels"].tolist()
        left, top, right, bottom = box
        assert 0 <= left < right <= 32
        assert 0 <= top < bottom <= 32
        assert 8 <= right - left <= 16
        colors[label].append(image[:, top:bottom, left:right].mean((1, 2)))
        outside = image.clone()
        outside[:, top:bottom, left:right] = 0
        assert outside.mean() < 0.06
    means = [torch.stack(found).mean(0) for found in colors.values()]
    assert all(
        (torch.stack(found) - mean).abs().max() < 0.1 for found, mean in zip(colors.values(), means, strict=True)
    )
    assert torch.cdist(torch.stack(means), torch.stack(means)).add(torch.eye(3)).min() > 0.5
    many = build_data("fake_detection", options={"samples": 20, "max_objects": 3}).train.examples(20)[1]
    assert {len(target["boxes"]) for target in many} == {1, 2, 3}


def test_masks_are_where_the_colors_are():
    data = build_data("fake_segmentation", options={"samples": 30, "num_classes": 3})
    images, masks = data.train.examples(30)
    assert (images.shape, masks.shape, masks.dtype) == ((30, 3, 32, 32), (30, 32, 32), torch.int64)
    assert masks.unique().tolist() == [0, 1, 2, 255]
    pixels = images.permute(0, 2, 3, 1)
    colors = torch.stack([pixels[masks == label].mean(0) for label in range(3)])
    nearest = torch.cdist(pixels.reshape(-1, 3), colors).argmin(1).reshape(masks.shape)
    counted = masks != 255
    assert (nearest == masks)[counted].float().mean() > 0.95
    assert 0.05 < (~counted).float().mean() < 0.3
    assert [mask[mask != 255].max().item() for mask in masks[:4]] == [1, 2, 1, 2]
    below = build_data("fake_segmentation", options={"ignore_index": -100}).train.examples(4)[1]
    assert below.min() == -100


def test_labels_can_be_read_from_the_patterns():
    data = build_data("fake_multilabel", options={"samples": 400, "num_labels": 3})
    assert (data.num_outputs, data.num_classes, data.input_shape) == (3, None, (16,))
    x, y = data.train.inputs, data.train.targets
    assert y.dtype == torch.float32
    assert ((y.mean(0) - 1 / 3).abs() < 0.1).all()
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    val = torch.cat([data.val.inputs, torch.ones(data.val.samples, 1)], 1) @ solved
    assert ((val > 0.5) == data.val.targets.bool()).float().mean() > 0.95


def test_both_inputs_are_needed():
    data = build_data("fake_two_inputs", options={"samples": 400})
    images, vectors = data.train.inputs
    assert (images.shape, vectors.shape, data.num_classes, data.num_outputs) == ((400, 1, 8, 8), (400, 6), 4, 4)

    def accuracy(*chosen):
        train = torch.cat([data.train.inputs[i].flatten(1) for i in chosen], 1)
        val = torch.cat([data.val.inputs[i].flatten(1) for i in chosen], 1)
        means = torch.stack([train[data.train.targets == label].mean(0) for label in range(4)])
        return (torch.cdist(val, means).argmin(1) == data.val.targets).float().mean()

    assert accuracy(0, 1) > 0.95
    assert accuracy(0) < 0.7
    assert accuracy(1) < 0.7


def test_tokens_tell_the_class_and_the_mask_the_length():
    data = build_data("fake_tokens", options={"samples": 300, "vocabulary": 13})
    batch = data.train.examples(300)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert torch.equal(batch["input_ids"] > 0, batch["attention_mask"].bool())
    assert batch["attention_mask"].sum(1).unique().tolist() == list(range(8, 17))
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()
    counts = torch.nn.functional.one_hot(batch["input_ids"], 13)[..., 1:].sum(1).reshape(300, 3, 4).sum(2)
    assert (counts.argmax(1) == batch["labels"]).float().mean() > 0.9
    assert (data.vocabulary, data.num_classes) == (13, 3)
    assert build_data("fake_tokens", sampler="balanced").train.samples == 512


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fake_detection", {"samples": 0}, "samples is 0"),
        ("fake_detection", {"image_size": 8}, "image_size is 8 and has to be at least 16"),
        ("fake_segmentation", {"num_classes": 1}, "num_classes is 1 and has to be at least 2"),
        ("fake_segmentation", {"ignore_index": 2}, "ignore_index 2 is one of the 4 classes"),
        ("fake_multilabel", {"num_labels": 0}, "num_labels is 0"),
        ("fake_two_inputs", {"features": 0}, "features is 0"),
        ("fake_tokens", {"vocabulary": 3}, "Each of 3 classes needs a token"),
    ],
)
def test_too_little_to_make_anything_of(name, options, words):
    with pytest.raises(DataError, match=words):
        build_data(name, options=options)
