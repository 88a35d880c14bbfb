"""Target interpretations: saliency maps with small values removed, or with values permuted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfrobust.arguments import as_count, as_not_negative
from tfrobust.errors import InputError

__all__ = ["permute", "threshold"]

# values that are processed at once, in double precision
_VALUES = 2**22


def threshold(maps: Any, phi: float, *, unbiased: bool = False) -> np.ndarray:
    """Zero where a value lies in [m - phi s, m + phi s], m and s its map's mean and deviation.

    m and s are taken over all pixels and channels of a map. They do not depend on the order of its
    values, not even by rounding: thresholding commutes exactly with `permute`.

    Source: Noack et al. 2020, section 3.1 (phi = 1).

    Args:
        maps: (batch, ...).
        phi: strength of the filter, at least 0; at 0, values equal to the mean become 0.
        unbiased: s with the divisor n - 1, as in the released code, instead of n, the number of
            values in a map.

    Returns:
        float32, like `maps`.

    Raises:
        ValueError: maps are malformed, NaN or infinite, phi is negative or not finite, or maps of
            one value with `unbiased`.
    """
    maps, phi = _as_maps(maps), as_not_negative("phi", phi)
    size = math.prod(maps.shape[1:])
    if unbiased and size == 1:
        raise InputError("maps of one value have no unbiased standard deviation")
    flat = maps.reshape(len(maps), size)
    result = np.empty(flat.shape, np.float32)
    for part in _parts(flat):
        values = flat[part].astype(np.float64)
        # sums round alike for values in the same order
        ordered = np.sort(values, axis=1)
        mean = ordered.mean(axis=1, keepdims=True)
        deviation = ordered.std(axis=1, mean=mean, ddof=int(unbiased), keepdims=True)
        small = (values >= mean - phi * deviation) & (values <= mean + phi * deviation)
        result[part] = np.where(small, 0, flat[part])
    return result.reshape(maps.shape)


def permute(maps: Any, probability: float, seed: int) -> np.ndarray:
    """Shuffle int(probability n) of each map's n values among themselves.

    Their positions, of all pixels and channels of the map, are chosen at random without
    replacement; a value may be shuffled to its own place. The permutation of a map depends on the
    seed, its row and n only: the first maps of a longer array are permuted alike.

    Source: Noack et al. 2020, section 4 (targets permuted to different degrees), the released code.

    Args:
        maps: (batch, ...).
        probability: in [0, 1]; 0 leaves the maps unchanged, 1 shuffles all values.
        seed: at least 0.

    Returns:
        float32, like `maps`.

    Raises:
        ValueError: maps are malformed, NaN or infinite, the probability lies outside [0, 1], or
            the seed is negative.
    """
    maps, seed = _as_maps(maps), as_count("seed", seed, 0)
    probability = as_not_negative("probability", probability)
    if probability > 1:
        raise InputError(f"probability must lie in [0, 1], got {probability:g}")
    result = maps.copy()
    flat = result.reshape(len(maps), -1)
    size = flat.shape[1]
    count = int(probability * size)
    if count < 2:
        return result
    for row, values in enumerate(flat):
        rng = np.random.default_rng([seed, row])
        chosen = rng.permutation(size)[:count]
        values[chosen] = values[rng.permutation(chosen)]
    return result


def _as_maps(maps: Any) -> np.ndarray:
    """`maps` as a C-ordered float32 array (batch, ...), without a copy where it is one."""
    maps = np.asarray(maps)
    if maps.dtype.kind not in "fiub":
        raise InputError(f"maps must hold numbers, got an array of {maps.dtype}")
    if maps.ndim < 2 or maps.size == 0:
        raise InputError(f"maps must be a batch, (batch, ...), got shape {maps.shape}")
    maps = np.ascontiguousarray(maps, np.float32)
    flat = maps.reshape(len(maps), -1)
    for part in _parts(flat):
        finite = np.isfinite(flat[part]).all(axis=1)
        if not finite.all():
            row = part.start + int(np.argmin(finite))
            raise InputError(f"maps hold NaN or infinite values, first in map {row}")
    return maps


def _parts(flat: np.ndarray) -> list[slice]:
    """Slices of rows that bound the memory."""
    rows = max(1, _VALUES // flat.shape[1])
    return [slice(start, start + rows) for start in range(0, len(flat), rows)]
