"""Correlation coefficients with bootstrap intervals."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from scipy import stats

from tfrobust.arguments import as_count, as_seed
from tfrobust.errors import InputError

__all__ = ["Correlation", "correlation"]


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Correlation of two series; coefficients lie in [-1, 1].

    Attributes:
        pearson: linear correlation coefficient; NaN where a series is constant.
        pearson_interval: (low, high), bootstrap percentile interval.
        spearman: rank correlation coefficient; NaN where a series is constant.
        spearman_interval: (low, high).
        points: number of pairs.
        confidence: of the intervals.
    """

    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]
    points: int
    confidence: float


def correlation(
    x: Any, y: Any, *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0
) -> Correlation:
    """Pearson's and Spearman's correlation of pairs, as in Kim 2019, Figures 4 and 5.

    Intervals are percentiles over resampled pairs; resamples in which a series is constant have no
    correlation and are left out. With few pairs the intervals are rough, and too narrow.

    Args:
        x: (points,) finite numbers.
        y: (points,) finite numbers.
        confidence: between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Raises:
        ValueError: not two series of finite numbers of one length, fewer than 3 pairs, or
            `confidence` outside (0, 1).
    """
    x, y = (_as_series(values, name) for values, name in ((x, "x"), (y, "y")))
    if len(x) != len(y) or len(x) < 3:
        raise InputError(f"x and y must have the same 3 or more points, got {len(x)} and {len(y)}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence!r}")
    resamples = as_count("resamples", resamples, 1)
    found = []
    for statistic in (_pearson, _spearman):
        with warnings.catch_warnings():
            # resamples without a correlation
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            distribution = stats.bootstrap(
                (x, y),
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                method="percentile",
                rng=np.random.default_rng(as_seed("seed", seed)),
            ).bootstrap_distribution
        distribution = distribution[np.isfinite(distribution)]
        tails = (1 - confidence) / 2, (1 + confidence) / 2
        interval = np.quantile(distribution, tails) if len(distribution) else (np.nan, np.nan)
        found += [float(statistic(x, y, axis=0)), tuple(map(float, interval))]
    return Correlation(*found, points=len(x), confidence=float(confidence))


def _pearson(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Along an axis; NaN where a series is constant."""
    constant = (np.ptp(x, axis=axis) == 0) | (np.ptp(y, axis=axis) == 0)
    x = x - x.mean(axis=axis, keepdims=True)
    y = y - y.mean(axis=axis, keepdims=True)
    norms = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    usable = ~constant & (norms > 0)
    coefficient = (x * y).sum(axis=axis) / np.where(usable, norms, 1)
    return np.where(usable, np.clip(coefficient, -1, 1), np.nan)


def _spearman(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    return _pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def _as_series(values: Any, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(f"{name} must be finite numbers (points,), got {values!r}")
    return values.astype(np.float64)
