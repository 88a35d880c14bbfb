"""The two Gaussians in the plane of Kim 2019, section 2.2 and appendix A.1."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfrobust.arguments import as_count, as_seed
from tfrobust.data.arrays import Dataset, dataset
from tfrobust.errors import InputError

__all__ = ["kim_toy", "kim_toy_low_variance_direction"]

_MEANS = ((1.2, 0.1), (-1.2, -0.1))
_COVARIANCE = ((0.1, -0.01), (-0.01, 0.002))
_SPLITS = ("train", "validation", "test")


def kim_toy(split: str = "train", *, seed: int = 0, count: int = 3000) -> Dataset:
    """Two classes of points in the plane, each normally distributed, in [-1, 1].

    Class 0 has mean (1.2, .1), class 1 has mean (-1.2, -.1), and both the covariance
    [[.1, -.01], [-.01, .002]], before both axes are rescaled by one and the same map that takes the
    smallest and the largest coordinate of the training split to -1 and 1. Angles are unchanged by
    it. The paper prints .0002 for the variance .002, with which the matrix is not positive
    definite, and the first mean for both classes; these misprints are corrected by the released
    code.

    The training split follows the released code: its generator with its draws, class 0 before class
    1, shuffled, so that seed 0 gives its points in its order. That code has no other split: it
    trains and attacks the same points, the latter before they are shuffled. Here "validation" and
    "test" are further points from generators of their own, shuffled. They are mapped as the
    training split is, and a point that falls outside [-1, 1] (on average about two of 6,000) is
    drawn again, so that `value_range` holds.

    Args:
        split: "train", "validation" or "test".
        seed: another seed gives other points, from 0 to 2^32 - 1.
        count: points per class and split.

    Returns:
        features (2 * count, 2) float32, labels 0 and 1, in random order.

    Raises:
        InputError: an unknown split, or a seed or count out of range.

    Source: Kim 2019, appendix A.1; the released code's notebook 4.1.
    """
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(_SPLITS)}")
    count, seed = as_count("count", count, 1), as_seed("seed", seed)
    # the legacy generator, whose stream is the released code's and does not change
    random = np.random.RandomState(seed)
    points = np.concatenate([_normal(random, mean, count) for mean in _MEANS])
    low, high = points.min(), points.max()
    if split != "train":
        random = np.random.RandomState([seed, _SPLITS.index(split)])
        points = np.concatenate([_normal(random, mean, count, low, high) for mean in _MEANS])
    points = (points - low) / (high - low) * 2 - 1
    rows = np.column_stack([points, np.repeat((0, 1), count)])
    random.shuffle(rows)
    return dataset(
        rows[:, :2],
        rows[:, 2],
        classes=2,
        value_range=(-1.0, 1.0),
        name="kim_toy",
        split=split,
        source="sampled from two normal distributions (Kim 2019, appendix A.1)",
        version=f"seed {seed}, {count} points per class",
        processing="both axes mapped alike, the training split's smallest and largest coordinate "
        "to -1 and 1",
    )


def kim_toy_low_variance_direction() -> np.ndarray:
    """The direction of least variance of either class of `kim_toy`.

    Returns:
        (2,) float64 of norm 1, the eigenvector of the covariance's smaller eigenvalue, with a
        positive second coordinate; the rescaling of the data leaves it unchanged.
    """
    _, vectors = np.linalg.eigh(_COVARIANCE)  # eigenvalues in ascending order
    return vectors[:, 0] * np.sign(vectors[1, 0])


def _normal(
    random: np.random.RandomState,
    mean: tuple[float, float],
    count: int,
    low: float = -np.inf,
    high: float = np.inf,
) -> np.ndarray:
    """(count, 2) points; those with a coordinate outside [low, high] are drawn again."""

    def draw(number: int) -> Any:
        return random.multivariate_normal(mean, _COVARIANCE, number)

    points = draw(count)
    while (outside := ((points < low) | (points > high)).any(axis=1)).any():
        points[outside] = draw(outside.sum())
    return points
