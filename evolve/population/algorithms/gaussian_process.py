"""A Gaussian process over the features of genomes, small and quick. Knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWERS = (1, 2, 4, 8)
NOISES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
_LEAST = 1e-12


@dataclass(frozen=True)
class Kernel:
    """A power of the cosine between features, and noise on the diagonal.

    Attributes:
        power: The higher, the nearer two genomes have to be for one to tell of the other.
        noise: Variance of the noise, as a share of that of the function.
    """

    power: int = 2
    noise: float = 0.1


def cosines(one: Array, other: Array) -> Array:
    """Returns the cosines between the rows of two arrays, [rows of one, rows of the other]; 0 for rows of zeros."""
    return np.asarray(_unit(one) @ _unit(other).T)


def likeliest(features: Array, targets: Array) -> Kernel:
    """Returns the kernel with the highest marginal likelihood (Rasmussen and Williams 2006, 5.8), of a small grid.

    The scale of the function is the likeliest for each.

    Args:
        features: [individuals, features].
        targets: [individuals], with mean 0.
    """
    cosine = cosines(features, features)
    best, kernel = -math.inf, Kernel()
    for power in POWERS:
        eigenvalues, vectors = np.linalg.eigh(cosine**power)
        projected = (vectors.T @ targets) ** 2
        for noise in NOISES:
            spectrum = np.maximum(eigenvalues, 0) + noise
            scale = max(float(np.mean(projected / spectrum)), _LEAST)
            likelihood = -0.5 * (len(targets) * math.log(scale) + float(np.log(spectrum).sum()))
            if likelihood > best:
                best, kernel = likelihood, Kernel(power, noise)
    return kernel


@dataclass
class Posterior:
    """What is known of a function after some of its values were seen.

    Args:
        kernel: How near genomes are to each other.
        features: [individuals, features] of those seen.
        targets: [individuals], with mean 0.
    """

    kernel: Kernel
    features: Array
    targets: Array

    def __post_init__(self) -> None:
        covariance = cosines(self.features, self.features) ** self.kernel.power
        covariance[np.diag_indices_from(covariance)] += self.kernel.noise
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ self.targets
        self._scale = max(float(self.targets @ self._weights) / max(1, len(self.targets)), _LEAST)

    def mean(self, features: Array) -> Array:
        """Returns the expected values, [rows]."""
        return np.asarray(cosines(features, self.features) ** self.kernel.power @ self._weights)

    def deviation(self, features: Array) -> Array:
        """Returns the standard deviations of the function without noise, [rows]."""
        across = cosines(features, self.features) ** self.kernel.power
        left = np.sum(_unit(features) ** 2, 1) ** self.kernel.power - np.sum(across @ self._inverse * across, 1)
        return np.asarray(np.sqrt(self._scale * np.maximum(left, _LEAST)))

    def and_with(self, features: Array) -> Posterior:
        """Returns what would be known if some more were as expected, for those that are still being evaluated.

        This is the "kriging believer" of Ginsbourger et al. 2010: the next ones asked for are to lie elsewhere.
        """
        if not len(features):
            return self
        targets = np.concatenate([self.targets, self.mean(features)])
        return Posterior(self.kernel, np.concatenate([self.features, features]), targets)


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Returns by how much a value is expected to exceed the best, [rows] (Jones et al. 1998)."""
    z = (mean - best) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])
    return np.asarray(deviation * (z * below + density))


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST))
