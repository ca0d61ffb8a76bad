"""The Gaussian process against formulas written out, and what the surrogate makes of it."""

import math

import numpy as np
import pytest

from evolve.population.algorithms.gaussian_process import (
    NOISES,
    POWERS,
    Kernel,
    Posterior,
    cosines,
    expected_improvement,
    likeliest,
)
from evolve.population.algorithms.surrogate import clipped

CHANCE = np.random.default_rng(0)
X, Y = CHANCE.random((12, 5)), CHANCE.standard_normal(12)


def test_cosines():
    found = cosines(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[2.0, 0.0]]))
    assert found.ravel() == pytest.approx([1.0, 0.5**0.5, 0.0])


def test_the_posterior():
    kernel = Kernel(4, 0.1)
    posterior = Posterior(kernel, X, Y)
    covariance = cosines(X, X) ** 4 + 0.1 * np.eye(12)
    new = CHANCE.random((3, 5))
    across = cosines(new, X) ** 4
    weights = np.linalg.solve(covariance, Y)
    scale = Y @ weights / 12
    assert posterior.mean(new) == pytest.approx(across @ weights)
    variance = 1 - np.diag(across @ np.linalg.solve(covariance, across.T))
    assert posterior.deviation(new) == pytest.approx(np.sqrt(scale * variance))


def test_the_likeliest_kernel():
    def likelihood(power, noise):
        covariance = cosines(X, X) ** power + noise * np.eye(12)
        scale = Y @ np.linalg.solve(covariance, Y) / 12
        return -0.5 * (12 * math.log(scale) + np.linalg.slogdet(covariance)[1])

    grid = [(power, noise) for power in POWERS for noise in NOISES]
    best = likeliest(X, Y)
    assert (best.power, best.noise) == max(grid, key=lambda each: likelihood(*each))


def test_noise_is_told_from_signal():
    x = CHANCE.random((60, 3))
    signal = (cosines(x, x[:4]) ** 4 * [1, -2, 3, -1]).sum(1)
    assert likeliest(x, signal - signal.mean()).noise < 0.01
    assert likeliest(x, CHANCE.standard_normal(60)).noise > 0.01


def test_who_is_out_is_believed_and_makes_its_place_less_promising():
    posterior = Posterior(Kernel(8, 0.01), X, Y)
    new = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])
    more = posterior.and_with(new)
    assert more.mean(new) == pytest.approx(posterior.mean(new), abs=0.02)
    assert more.deviation(new) < 0.5 * posterior.deviation(new)
    assert posterior.and_with(new[:0]) is posterior


def test_expected_improvement():
    mean, deviation = np.array([0.0, 1.0, -3.0]), np.array([1.0, 0.5, 0.1])
    samples = np.random.default_rng(1).standard_normal((200_000, 3)) * deviation + mean
    assert expected_improvement(mean, deviation, 0.5) == pytest.approx(np.maximum(samples - 0.5, 0).mean(0), abs=5e-3)


def test_what_is_far_below_the_median_is_raised():
    found = clipped(np.array([1.0, 2.0, 3.0, -100.0, -math.inf, 2.5, 2.0]))
    raised = np.array([1.0, 2.0, 3.0, 1.0, 1.0, 2.5, 2.0])
    assert found == pytest.approx((raised - raised.mean()) / raised.std())
    assert clipped(np.array([-math.inf, -math.inf])) == pytest.approx([0.0, 0.0])
