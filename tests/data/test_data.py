"""Batches, augmentation and data sets."""

from __future__ import annotations

import random
from itertools import islice
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from evolve.data import (
    CropFlip,
    Data,
    IterableBatches,
    LoaderBatches,
    Normalise,
    TensorBatches,
    as_batches,
    build_data,
    find_data,
)
from evolve.data.order import batch_bounds, mix
from evolve.errors import DataError, UnknownNameError


class Noisy(Dataset):
    """A map-style data set whose transforms draw from every global generator."""

    def __len__(self):
        return 21

    def __getitem__(self, index):
        return torch.rand(3) + random.random() + float(np.random.rand()), index


def images(n=21):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make(kind, workers=0):
    if kind == "tensor":
        return TensorBatches(images(), torch.arange(21), 4, shuffle=True, seed=3, augment=CropFlip(2))
    return LoaderBatches(Noisy(), 4, shuffle=True, seed=3, workers=workers)


def same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_resume_is_bit_identical_and_global_randomness_untouched(kind):
    before = global_states()
    batches = make(kind)
    whole = list(batches.epoch(2))
    assert same(whole[3:], make(kind).epoch(2, start=3))
    assert not list(batches.epoch(2, start=len(batches)))
    assert not same(whole, batches.epoch(1))
    assert torch.equal(batches.example(5), batches.example(5))
    assert batches.example(5).shape[0] == 5
    assert global_states() == before


@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_every_sample_once_and_no_batch_of_one(kind):
    batches = make(kind)
    whole = list(batches.epoch(0))
    assert [len(targets) for _, targets in whole] == [4, 4, 4, 4, 5]
    assert (len(batches), batches.samples) == (5, 21)
    assert torch.cat([targets for _, targets in whole]).sort().values.tolist() == list(range(21))


def test_workers_do_not_change_batches():
    assert same(make("loader").epoch(1), make("loader", workers=1).epoch(1))


def test_batch_bounds():
    assert batch_bounds(7, 3) == [(0, 3), (3, 7)]
    assert batch_bounds(8, 3) == [(0, 3), (3, 6), (6, 8)]
    assert batch_bounds(1, 3) == [(0, 1)]
    assert batch_bounds(2, 1) == [(0, 1), (1, 2)]


def test_mixed_seeds_differ_where_torch_looks():
    seeds = {mix(s, e, b) & 0xFFFFFFFF for s in range(10) for e in range(10) for b in range(10)}
    assert len(seeds) == 1000


def test_crop_flip_equals_the_naive_loop():
    batch, pad = images(16), 2
    got = CropFlip(pad)(batch, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    down, right = torch.randint(0, 2 * pad + 1, (2, 16), generator=generator)
    mirror = torch.rand(16, generator=generator) < 0.5
    assert 0 < mirror.sum() < 16
    padded = torch.zeros(16, 3, 12, 12, dtype=torch.uint8)
    padded[:, :, 2:10, 2:10] = batch
    for i in range(16):
        want = padded[i, :, down[i] : down[i] + 8, right[i] : right[i] + 8]
        assert torch.equal(got[i], want.flip(2) if mirror[i] else want)


def test_crop_without_padding_or_flip_changes_nothing():
    assert torch.equal(CropFlip(0, flip=False)(images(), torch.Generator()), images())


def test_bytes_are_normalised():
    want = (images().double() / 255 - 0.4) / 0.2
    torch.testing.assert_close(Normalise([0.4] * 3, [0.2] * 3)(images()).double(), want, atol=1e-6, rtol=1e-5)
    plain = TensorBatches(images(), torch.arange(21), 4, shuffle=False)
    assert torch.equal(plain.example(2), images()[:2].float() / 255)


def test_as_batches_takes_what_people_have():
    x, y = torch.randn(10, 2), torch.arange(10)
    assert isinstance(as_batches((x, y), 4, shuffle=False), TensorBatches)
    assert isinstance(as_batches(TensorDataset(x, y), 4, shuffle=False), TensorBatches)
    assert isinstance(as_batches(Noisy(), 4, shuffle=False), LoaderBatches)
    assert isinstance(as_batches(list(zip(x, y, strict=True)), 4, shuffle=False), LoaderBatches)
    batches = as_batches(DataLoader(TensorDataset(x, y), 4), shuffle=False)
    assert isinstance(batches, IterableBatches)
    assert as_batches(batches, shuffle=True) is batches


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3), "Give a pair"),
        ((np.zeros(3), np.array(["a", "b", "c"])), "Turn text into class numbers"),
        ((np.zeros(3), np.zeros(2)), "do not pair up"),
        ((torch.zeros(3), "abc"), "must hold tensors"),
        ({"x": torch.zeros(3), "y": torch.zeros(2)}, r"\['x'\] has 3, batch\['y'\] has 2"),
        ({"x": torch.zeros(3), "y": torch.tensor(1)}, r"\['y'\] is a single number"),
        (3, "Cannot make batches of a int"),
        ((torch.zeros(3), torch.zeros(2)), "do not pair up"),
        ((torch.zeros(0, 2), torch.zeros(0)), "empty"),
        ([], "empty"),
        (Stream(), "Wrap the IterableDataset"),
        (DataLoader(Stream()), "has no length"),
    ],
)
def test_as_batches_gives_advice(data, message):
    with pytest.raises(DataError, match=message):
        as_batches(data, shuffle=False)


def test_inputs_are_had_from_pairs_alone():
    with pytest.raises(DataError, match="must be \\(inputs, targets\\)"):
        as_batches([torch.zeros(2), torch.ones(2), torch.ones(2)], shuffle=False).example(1)


def test_a_second_pass_leaves_the_running_one_of_persistent_workers_as_it_is():
    data = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12))
    batches = IterableBatches(DataLoader(data, 3, num_workers=1, persistent_workers=True))
    running = batches.epoch(0)
    seen = [next(running)[1].tolist()]
    assert next(iter(batches.onward(0, 1)))[1].tolist() == [3, 4, 5]
    seen += [targets.tolist() for _, targets in running]
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    kept = batches.loader._iterator
    for number in (1, 2):
        epoch = batches.epoch(number)
        next(epoch)
        assert batches._passes == 1
        assert batches.loader._iterator is kept  # whose workers go on from epoch to epoch
        assert len(list(epoch)) == 3


@pytest.mark.parametrize("own", [False, True])
def test_a_look_ahead_leaves_the_generators_of_a_loader_as_they_were(own):
    def batches():
        data = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12))
        generator = torch.Generator().manual_seed(3)
        how = {"sampler": RandomSampler(data, generator=generator)} if own else {"shuffle": True}
        return IterableBatches(DataLoader(data, 3, generator=generator, **how))

    def numbers(found):
        return [targets.tolist() for _, targets in found]

    plain, looked = batches(), batches()
    expected = [numbers(plain.epoch(epoch)) for epoch in range(2)]
    running = looked.epoch(0)
    seen = numbers([next(running)])
    looks = [numbers(islice(looked.onward(0, 1), 5)) for _ in range(2)]
    assert looks[0] == looks[1]
    assert [seen + numbers(running), numbers(looked.epoch(1))] == expected


def test_own_loader_keeps_its_order_and_example_leaves_no_trace():
    def loader():
        data = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))
        return DataLoader(data, 3, shuffle=True, generator=torch.Generator().manual_seed(0))

    batches, before = IterableBatches(loader()), global_states()
    assert batches.example(5).shape == (5, 1)
    assert batches.example(50).shape == (10, 1)
    assert global_states() == before
    assert (batches.samples, len(batches)) == (10, 4)
    assert same(batches.epoch(0, start=2), list(loader())[2:])


def test_digits():
    data = build_data("digits", batch_size=32, augment=True)
    assert (data.train.samples, data.val.samples, data.num_classes) == (1438, 359, 10)
    assert (data.input_shape, len(data.train)) == ((1, 8, 8), 45)
    inputs = data.train.example(1438)
    assert abs(inputs.mean()) < 0.02
    assert abs(inputs.std() - 1) < 0.02
    other = build_data("digits", seed=9, options={"split_seed": 0})
    assert torch.equal(other.val.example(359), data.val.example(359))
    assert torch.bincount(data.val.targets).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_fake_can_be_learned():
    data = build_data("fake", options={"samples": 100, "shape": [2, 5, 5], "num_classes": 4})
    assert (data.train.samples, data.val.samples, data.input_shape) == (100, 25, (2, 5, 5))
    means = torch.stack([data.train.inputs[data.train.targets == c].mean(0) for c in range(4)])
    nearest = torch.cdist(data.val.inputs.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == data.val.targets).float().mean() > 0.95
    with pytest.raises(DataError, match="Switch it off"):
        build_data("fake", augment=True, options={"shape": [7]})


@pytest.fixture
def picture_folder(tmp_path):
    for part, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (10, 10), (40 * i, 200 * label, 7)).save(folder / f"{i}.png")
    return tmp_path


def test_image_folder(picture_folder):
    data = build_data("image_folder", batch_size=4, augment=True, options={"root": str(picture_folder)})
    assert (data.train.samples, data.val.samples, data.num_classes, data.input_shape) == (10, 4, 2, (3, 10, 10))
    assert isinstance(data.train, TensorBatches)
    assert data.train.inputs[6, :, 0, 0].tolist() == [40, 200, 7]
    options = {"root": str(picture_folder), "memory_limit_mb": 0}
    read = build_data("image_folder", batch_size=4, augment=True, options=options)
    assert isinstance(read.train, LoaderBatches)
    assert same(read.train.epoch(1), data.train.epoch(1))
    split = build_data("image_folder", options={"root": str(picture_folder / "train"), "image_size": 6})
    assert (split.train.samples, split.val.samples, split.input_shape) == (8, 2, (3, 6, 6))


def test_image_folder_faults(picture_folder, tmp_path):
    options = {"root": str(picture_folder)}
    Image.new("RGB", (9, 12)).save(picture_folder / "train" / "dog" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png' is 9x12.*image_size"):
        build_data("image_folder", options=options)
    (picture_folder / "train" / "dog" / "odd.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Cannot read the image .*odd.png"):
        build_data("image_folder", options=options)
    (picture_folder / "train" / "bird").mkdir()
    (picture_folder / "train" / "bird" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="only one has bird"):
        build_data("image_folder", options=options)
    with pytest.raises(DataError, match="There is no folder"):
        build_data("image_folder", options={"root": str(tmp_path / "absent")})
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="one folder of images for each class"):
        build_data("image_folder", options={"root": str(tmp_path / "bare")})


def test_missing_cifar_says_where_why_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"Cannot load CIFAR10 from .*absent.*Set download: true") as caught:
        build_data("cifar10", options={"root": str(tmp_path / "absent"), "download": False})
    assert str(tmp_path) in str(caught.value)

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match=r"no route to host.*https://.*Check the network.*'digits' needs no download"):
        build_data("cifar100", options={"root": str(tmp_path)})


def own_pair(batch_size, factor=1):
    x = torch.randn(12, 4) * factor
    return (x, torch.arange(12) % 3), (x, torch.arange(12) % 3)


def own_data(**common):
    assert sorted(common) == ["augment", "batch_size", "seed", "workers"]
    return build_data("fake", **common)


def own_nonsense():
    return 3


def test_own_function_by_import_path():
    data = build_data(f"{__name__}:own_pair", batch_size=5, options={"factor": 2})
    assert (len(data.train), data.num_classes, data.input_shape) == (3, 3, (4,))
    assert isinstance(build_data(f"{__name__}.own_data"), Data)
    with pytest.raises(DataError, match="returned a int"):
        build_data(f"{__name__}:own_nonsense")


def test_unknown_names_and_options():
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'digit'\. Did you mean 'digits'"):
        find_data("digit")
    with pytest.raises(UnknownNameError, match="cannot import 'nowhere'"):
        find_data("nowhere:load")
    with pytest.raises(DataError, match="Did you mean 'val_fraction'"):
        build_data("digits", options={"val_fractoin": 0.1})
    with pytest.raises(DataError, match="between 0 and 1"):
        build_data("digits", options={"val_fraction": 1.5})
