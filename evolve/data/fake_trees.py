"""Made-up data whose batches are not one tensor with one class each: several labels, two inputs, token sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from evolve.data.batches import TensorBatches
from evolve.data.sources import Data, datasets
from evolve.errors import DataError


@datasets.register("fake_multilabel")
def fake_multilabel(
    batch_size: int = 64,
    seed: int = 0,
    samples: int = 512,
    features: int = 16,
    num_labels: int = 4,
    noise: float = 0.5,
) -> Data:
    """Makes vectors that are the sum of the patterns of their labels plus noise; a quarter as many again are held out.

    A batch is `(inputs, targets)`: (N, features) and (N, num_labels) floats, 1 where a sample has the label. Each label
    is there in about a third of the samples.

    Args:
        batch_size: Samples in a batch.
        seed: Seed of patterns, noise and order.
        samples: Training samples.
        features: Length of a vector.
        num_labels: Labels, any number of which a sample may have.
        noise: Standard deviation of the noise; the patterns' is 1.

    Raises:
        DataError: If a number is too small.
    """
    _check(samples=samples, features=features, num_labels=num_labels)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_labels, features, generator=generator)

    def make(count: int) -> tuple[Tensor, Tensor]:
        targets = (torch.rand(count, num_labels, generator=generator) < 1 / 3).float()
        return targets @ patterns + noise * torch.randn(count, features, generator=generator), targets

    train, val = make(samples), make(_held_out(samples))
    return Data(
        TensorBatches(*train, batch_size, shuffle=True, seed=seed),
        TensorBatches(*val, batch_size, shuffle=False, seed=seed),
        input_shape=(features,),
        num_outputs=num_labels,
        class_names=tuple(f"label {number}" for number in range(num_labels)),
    )


@datasets.register("fake_two_inputs")
def fake_two_inputs(
    batch_size: int = 64,
    seed: int = 0,
    samples: int = 512,
    image_size: int = 8,
    features: int = 6,
    noise: float = 0.5,
) -> Data:
    """Makes pairs of an image and a vector, with four classes: two that the image tells apart times two of the vector.

    A quarter as many again are held out. A batch is `((images, vectors), targets)`: (N, 1, H, W) and (N, features)
    floats, and (N,) class numbers. A model that sees one of the inputs alone is right half of the time.

    Args:
        batch_size: Samples in a batch.
        seed: Seed of patterns, noise and order.
        samples: Training samples.
        image_size: Height and width.
        features: Length of a vector.
        noise: Standard deviation of the noise; the patterns' is 1.

    Raises:
        DataError: If a number is too small.
    """
    _check(samples=samples, image_size=image_size, features=features)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, image_size, image_size), (features,))
    patterns = [torch.randn(2, *shape, generator=generator) for shape in shapes]

    def make(count: int) -> tuple[tuple[Tensor, ...], Tensor]:
        targets = torch.arange(count) % 4
        parts = (targets // 2, targets % 2)
        inputs = tuple(
            pattern[part] + noise * torch.randn(count, *shape, generator=generator)
            for pattern, part, shape in zip(patterns, parts, shapes, strict=True)
        )
        return inputs, targets

    train, val = make(samples), make(_held_out(samples))
    return Data(
        TensorBatches(*train, batch_size, shuffle=True, seed=seed),
        TensorBatches(*val, batch_size, shuffle=False, seed=seed),
        num_classes=4,
    )


@datasets.register("fake_tokens")
def fake_tokens(
    batch_size: int = 64,
    seed: int = 0,
    samples: int = 512,
    vocabulary: int = 32,
    length: int = 16,
    num_classes: int = 3,
) -> Data:
    """Makes token sequences of different lengths, padded to one; a quarter as many again are held out.

    A batch is `{"input_ids": (N, length), "attention_mask": (N, length), "labels": (N,)}`, all int64. Every class has
    tokens that it prefers: half of a sequence are these, the others any. Token 0 is padding, where the mask is 0.

    Args:
        batch_size: Sequences in a batch.
        seed: Seed of tokens, lengths and order.
        samples: Training sequences.
        vocabulary: Tokens, with the padding.
        length: Longest sequence; the shortest has half of it.
        num_classes: Classes, which take turns.

    Raises:
        DataError: If a number is too small, or there are fewer tokens than classes.
    """
    _check(samples=samples, length=length, num_classes=num_classes)
    if vocabulary <= num_classes:
        raise DataError(f"Each of {num_classes} classes needs a token besides the padding: vocabulary is {vocabulary}.")
    generator = torch.Generator().manual_seed(seed)
    own = (vocabulary - 1) // num_classes  # tokens that a class prefers

    def make(count: int) -> dict[str, Tensor]:
        labels = torch.arange(count) % num_classes
        shape = (count, length)
        preferred = 1 + labels[:, None] * own + torch.randint(own, shape, generator=generator)
        tokens = torch.randint(1, vocabulary, shape, generator=generator)
        tokens = torch.where(torch.rand(shape, generator=generator) < 0.5, preferred, tokens)
        lengths = torch.randint((length + 1) // 2, length + 1, (count, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}

    return Data(
        TensorBatches(make(samples), None, batch_size, shuffle=True, seed=seed),
        TensorBatches(make(_held_out(samples)), None, batch_size, shuffle=False, seed=seed),
        num_classes=num_classes,
        input_shape=(length,),
        vocabulary=vocabulary,
    )


def _held_out(samples: int) -> int:
    return max(4, samples // 4)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise DataError(f"Too few for made-up samples: {name} is {value} and has to be at least 1.")
