"""Images of which the most, or the least, important pixels are replaced by one colour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfrobust.arguments import as_not_negative, as_seed
from tfrobust.errors import InputError

__all__ = [
    "as_attribution",
    "as_colour",
    "as_fraction",
    "mean_colour",
    "occlude",
    "occlude_at_random",
    "occluded_pixels",
    "pixel_attribution",
    "random_pixels",
]

# images per block of the arrays; bounds the memory, results do not depend on it
_BLOCK = 500


def pixel_attribution(maps: Any) -> np.ndarray:
    """One number per pixel: the sum over channels of absolute values (Kim 2019's released code).

    Args:
        maps: (count, height, width, channels), or (count, height, width), which is returned as it
            is: there the sign counts.

    Returns:
        (count, height, width), float32, or float64 where the maps are.

    Raises:
        ValueError: another number of axes, no image, or NaN or infinite values.
    """
    maps = np.asarray(maps)
    if maps.ndim not in (3, 4) or 0 in maps.shape or maps.dtype.kind not in "fiu":
        raise InputError(
            "an attribution must be numbers (count, height, width) or (count, height, width, "
            f"channels), got {maps.dtype} {maps.shape}"
        )
    if maps.dtype not in (np.float32, np.float64):
        maps = maps.astype(np.float64)
    if maps.ndim == 4:
        channels = np.moveaxis(maps, -1, 0)
        maps = np.abs(channels[0])
        for channel in channels[1:]:  # one at a time, so that no copy of all is made
            maps += np.abs(channel)
    not_finite = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if len(not_finite):
        raise InputError(
            f"the attribution holds NaN or infinite values for {len(not_finite)} of {len(maps)} "
            f"images, first for image {not_finite[0]}"
        )
    return maps


def mean_colour(images: Any) -> np.ndarray:
    """The mean of each channel over all pixels of all images: (count, h, w, c) -> (c,) float32.

    Raises:
        ValueError: no images, or not finite.
    """
    images = _as_images(images)
    return images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)


def occlude(
    images: Any,
    attribution: Any,
    fraction: float,
    *,
    keep: bool = False,
    colour: Any,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Replace the pixels that matter most to a model, or all others, by one colour.

    All channels of a pixel are replaced together. Kim 2019's released code stores test images as
    bytes, so that there the colour is truncated to whole grey levels; here it is not.

    Args:
        images: (count, height, width, channels).
        attribution: (count, height, width) or (count, height, width, channels); see
            `pixel_attribution`.
        fraction: share of pixels between 0 and 1; see `occluded_pixels` for the exact number.
        keep: False (ROAR): the fraction with the largest attribution is replaced. True (KAR): that
            fraction is kept, and all others are replaced.
        colour: (channels,), or a number for all channels: in ROAR and KAR the mean colour of the
            training set.
        noise: see `occluded_pixels`.
        seed: see `occluded_pixels`.

    Returns:
        (count, height, width, channels) float32.

    Raises:
        ValueError: malformed images, attribution or colour, attribution of images of another
            number or size, or a fraction outside (0, 1).
    """
    images = _as_images(images)
    attribution = as_attribution(attribution, images.shape)
    mask = occluded_pixels(attribution, fraction, keep=keep, noise=noise, seed=seed)
    return _replaced(images, mask, as_colour(colour, images.shape[-1]))


def occluded_pixels(
    attribution: Any, fraction: float, *, keep: bool = False, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Which pixels `occlude` replaces.

    As in Kim 2019's released code: with q the (1 - fraction) quantile of an image's attribution
    (NumPy's, interpolated linearly), the pixels strictly above q are replaced in ROAR, those
    strictly below q in KAR. Of n pixels these are n - 1 - floor((n - 1) (1 - fraction)) and
    ceil((n - 1) (1 - fraction)). The two sets are complementary, but for the one pixel at q where
    (n - 1) (1 - fraction) is whole, which both keep.

    Equal values, as in the map of zeros of an example whose gradient underflows, are ordered at
    random, in the same order for all fractions, so that the number of replaced pixels is exact and
    the order of distinct values is kept.

    Args:
        attribution: (count, height, width) or (count, height, width, channels).
        fraction: between 0 and 1.
        keep: whether the fraction with the largest attribution is kept (KAR) or replaced (ROAR).
        noise: adds uniform noise in [0, noise) to the attribution first. The released code's 1e-8
            can exceed the whole loss gradient of a confidently classified example.
        seed: of the noise and the order of equal values, which also depend on an image's position.

    Returns:
        (count, height, width) bool.

    Raises:
        ValueError: malformed attribution, a fraction outside (0, 1), or negative noise.
    """
    attribution = pixel_attribution(attribution)
    fraction, noise = as_fraction(fraction), as_not_negative("noise", noise)
    seed = as_seed("seed", seed)
    pixels = math.prod(attribution.shape[1:])
    # of the quantile, counted from 0; rounded, so that .9 * 10 is 9
    rank = round((pixels - 1) * (1 - fraction), 9)
    count = pixels - math.ceil(rank) if keep else pixels - 1 - math.floor(rank)
    mask = np.empty((len(attribution), pixels), bool)
    for start in range(0, len(mask), _BLOCK):
        values = attribution[start : start + _BLOCK].reshape(-1, pixels)
        if noise:
            values = values.astype(np.float64)
            for row, of_image in enumerate(values):
                of_image += _rng(seed, start + row).uniform(0, noise, pixels)
        largest = _largest(values, count, seed, start)
        mask[start : start + _BLOCK] = ~largest if keep else largest
    return mask.reshape(attribution.shape)


def occlude_at_random(images: Any, fraction: float, *, colour: Any, seed: int = 0) -> np.ndarray:
    """Replace each pixel by one colour with probability `fraction`, independently.

    The random baseline of Kim 2019's released code. Keeping a random fraction is the same as
    replacing 1 - fraction.

    Args:
        images: (count, height, width, channels).
        fraction: between 0 and 1.
        colour: as in `occlude`.
        seed: of the pixels.

    Returns:
        (count, height, width, channels) float32.

    Raises:
        ValueError: malformed images or colour, or a fraction outside (0, 1).
    """
    images = _as_images(images)
    mask = random_pixels(images.shape[:3], fraction, as_seed("seed", seed))
    return _replaced(images, mask, as_colour(colour, images.shape[-1]))


def random_pixels(
    shape: tuple[int, int, int], fraction: float, seed: int | np.random.SeedSequence
) -> np.ndarray:
    """Which pixels `occlude_at_random` replaces: (count, height, width) bool.

    Raises:
        ValueError: a fraction outside (0, 1).
    """
    fraction = as_fraction(fraction)
    rng = np.random.default_rng(seed)
    mask = np.empty(shape, bool)
    for start in range(0, len(mask), _BLOCK):
        block = mask[start : start + _BLOCK]
        np.less(rng.random(block.shape), fraction, out=block)
    return mask


def as_attribution(maps: Any, shape: tuple[int, ...], name: str = "images") -> np.ndarray:
    """`pixel_attribution(maps)`, refused where it is not of images of this shape.

    Args:
        maps: as `pixel_attribution` takes them.
        shape: (count, height, width, ...).
        name: of the images, for the message.

    Raises:
        ValueError: malformed, or of images of another number or size.
    """
    attribution = pixel_attribution(maps)
    if attribution.shape != shape[:3]:
        raise InputError(
            f"the attribution is of images {attribution.shape}, but the {name} are {shape[:3]}"
        )
    return attribution


def as_colour(colour: Any, channels: int) -> np.ndarray:
    """A colour as (channels,) float32.

    Raises:
        ValueError: not finite numbers, or another number of channels.
    """
    values = np.asarray(colour)
    fits = values.dtype.kind in "fiu" and values.shape in ((), (channels,))
    if not fits or not np.isfinite(values).all():
        raise InputError(f"colour must be {channels} finite numbers, one per channel: {colour!r}")
    return np.broadcast_to(values.astype(np.float32), (channels,))


def as_fraction(fraction: Any) -> float:
    """A number strictly between 0 and 1.

    Raises:
        ValueError: not one.
    """
    value = np.asarray(fraction)
    if value.shape != () or value.dtype.kind not in "fiu" or not 0 < value < 1:
        raise InputError(f"a fraction must lie between 0 and 1, got {fraction!r}")
    return float(value)


def _replaced(images: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    occluded = np.array(images, np.float32)
    occluded[mask] = colour
    return occluded


def _largest(values: np.ndarray, count: int, seed: int, first: int) -> np.ndarray:
    """The `count` largest values of each row, equal ones in random order: (rows, pixels) bool."""
    if count == 0:
        return np.zeros(values.shape, bool)
    place = values.shape[1] - count
    threshold = np.partition(values, place, axis=1)[:, place : place + 1]
    largest = values >= threshold
    surplus = largest.sum(axis=1) - count
    for row in np.flatnonzero(surplus):
        equal = np.flatnonzero(values[row] == threshold[row])
        order = np.argsort(_rng(seed, first + row).random(values.shape[1])[equal])
        largest[row, equal[order[: surplus[row]]]] = False
    return largest


def _rng(seed: int, image: int) -> np.random.Generator:
    return np.random.default_rng([seed, image])


def _as_images(images: Any) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape or images.dtype.kind not in "fiu":
        raise InputError(
            "images must be numbers (count, height, width, channels), got "
            f"{images.dtype} {images.shape}"
        )
    if not np.isfinite(images).all():
        raise InputError("the images hold NaN or infinite values")
    return images
