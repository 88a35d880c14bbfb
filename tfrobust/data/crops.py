"""The crops of Etmann 2019 on ImageNet: random for training, centred for validation.

An image is scaled so that its shorter side has a given length, bilinearly and without smoothing,
and a window is cut out. Only the window is computed, so a long thin image costs no more than
another.

The released code ran TensorFlow 1, whose `resize_images` put output pixel i at i * old / new of the
source; here, as in TensorFlow 2, pixel centres correspond: (i + 1/2) * old / new - 1/2. The
difference is a shift of (old / new - 1) / 2 source pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.errors import InputError

__all__ = ["Augment", "Preprocess", "Views", "centre_crop", "check_crop", "random_crop"]

_HUE = 0.06
_COLOURS = ((0, 0, 0), (255, 255, 255), (200, 100, 50))  # tell one preprocessing from another

Augment = Callable[[Any, Any], tf.Tensor]
Preprocess = Callable[[tf.Tensor], tf.Tensor]


def check_crop(size: tuple[int, int], shorter_side: int) -> None:
    """Check that a window fits into every image scaled to `shorter_side`.

    Raises:
        ValueError: it does not, or a length is less than 1.
    """
    if min(size) < 1:
        raise InputError(f"a crop has at least one pixel a side, got size={tuple(size)}")
    if shorter_side < max(size):
        raise InputError(
            f"a crop of {size[0]}x{size[1]} does not fit into an image whose shorter side is "
            f"scaled to {shorter_side}: choose a smaller crop or a side of at least {max(size)}"
        )


def random_crop(
    image: Any,
    seed: Any,
    size: tuple[int, int] = (256, 256),
    shorter_side: tuple[int, int] = (258, 512),
) -> tf.Tensor:
    """Training's view of an image: random scale, window, hue and side.

    The shorter side is drawn uniformly from the whole numbers of `shorter_side`, ends included; the
    window uniformly from all that fit; the hue turns by up to .06 of a circle; half of the images
    are mirrored. The released code draws from the same ranges without their upper ends.

    Args:
        image: (height, width, 3), RGB in 0..255.
        seed: two integers, which decide every draw.
        size: height and width of the window.
        shorter_side: least and largest length that the shorter side is scaled to.

    Returns:
        (*size, 3) float32, RGB in 0..255.

    Raises:
        ValueError: the window does not fit into the smallest scale.
    """
    _check_scales(size, shorter_side)
    seeds = [tf.random.fold_in(seed, draw) for draw in range(5)]
    side = _whole(seeds[0], *shorter_side)
    scaled = _scaled(image, side)
    top, left = _whole(seeds[1], 0, scaled[0] - size[0]), _whole(seeds[2], 0, scaled[1] - size[1])
    window = _window(image, scaled, tf.stack([top, left]), size)
    window = tf.image.stateless_random_hue(window, _HUE, seeds[3])
    window = tf.image.stateless_random_flip_left_right(window, seeds[4])
    return tf.clip_by_value(window, 0.0, 255.0)


def centre_crop(
    image: Any, size: tuple[int, int] = (256, 256), shorter_side: int = 256
) -> tf.Tensor:
    """Validation's view of an image: the middle of it, its shorter side scaled to `shorter_side`.

    Args:
        image: (height, width, 3), RGB in 0..255.
        size: height and width of the window.
        shorter_side: length that the shorter side is scaled to.

    Returns:
        (*size, 3) float32, RGB in 0..255.

    Raises:
        ValueError: the window does not fit.
    """
    check_crop(size, shorter_side)
    scaled = _scaled(image, shorter_side)
    return tf.clip_by_value(_window(image, scaled, (scaled - size) // 2, size), 0.0, 255.0)


def _check_scales(size: tuple[int, int], shorter_side: tuple[int, int]) -> None:
    low, high = shorter_side
    check_crop(size, low)
    if high < low:
        raise InputError(f"shorter_side runs from {low} down to {high}: give (least, largest)")


def _whole(seed: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
    """A whole number of low .. high."""
    return tf.random.stateless_uniform([], seed, low, high + 1, tf.int32)


def _scaled(image: Any, side: Any) -> tf.Tensor:
    """Height and width once the shorter side is `side`; the longer one as in the released code."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
    side = tf.cast(side, tf.int64)
    # int(side / shorter * longer + 1), which makes a square image one pixel taller than wide
    tall = tf.stack([side * height // width + 1, side])
    wide = tf.stack([side, side * width // height + 1])
    return tf.cast(tf.where(height < width, wide, tall), tf.int32)


def _window(image: Any, scaled: tf.Tensor, corner: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`tf.image.resize(image, scaled)` from `corner` on."""
    found = tf.shape(image)[:2]
    windows = tf.raw_ops.ScaleAndTranslate(
        images=tf.expand_dims(image, 0),
        size=size,
        scale=tf.cast(scaled, tf.float32) / tf.cast(found, tf.float32),
        translation=-tf.cast(corner, tf.float32),
        kernel_type="triangle",
        antialias=False,
    )
    return tf.ensure_shape(windows[0], (*size, 3))


class Views:
    """What training and evaluation make of an image.

    Args:
        size: height and width of the images.
        shorter_side: training scales the shorter side to a length drawn from these.
        validation_side: evaluation scales it to this length.
        augment: (image, seed) -> (*size, 3), in place of `random_crop`.
        preprocess: takes (count, *size, 3) RGB in 0..255 to the network's input.
        value_range: least and largest value after it; default: its attribute `value_range`.

    Raises:
        ValueError: a crop does not fit, or the value range is not known.
    """

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        shorter_side: tuple[int, int] = (258, 512),
        validation_side: int = 256,
        augment: Augment | None = None,
        preprocess: Preprocess | None = None,
        value_range: Any = None,
    ):
        _check_scales(size, shorter_side)
        check_crop(size, validation_side)
        if preprocess is None:
            preprocess, value_range = _unchanged, (0.0, 255.0)
        elif value_range is None:
            value_range = getattr(preprocess, "value_range", None)
        if value_range is None:
            raise InputError(
                "preprocess has no attribute value_range: give value_range=(least, largest), the "
                "values that it can return"
            )
        self.size, self.value_range = tuple(size), value_range
        self._shorter_side, self._validation_side = tuple(shorter_side), validation_side
        self._augment, self._preprocess = augment, preprocess
        colours = np.array(_COLOURS, np.float32)[:, None, None]
        self._probe = self.input(tf.constant(np.tile(colours, (1, *size, 1)))).numpy()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one preprocessed image."""
        return self._probe.shape[1:]

    def training(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """(height, width, 3) -> (*size, 3) float32, not preprocessed yet."""
        if self._augment is None:
            return random_crop(image, seed, self.size, self._shorter_side)
        return tf.ensure_shape(self._augment(image, seed), (*self.size, 3))

    def evaluation(self, image: tf.Tensor) -> tf.Tensor:
        """(height, width, 3) -> (*size, 3) float32, not preprocessed yet."""
        return centre_crop(image, self.size, self._validation_side)

    def input(self, images: tf.Tensor) -> tf.Tensor:
        """(count, *size, 3) -> (count, *input_shape) float32, as the network takes it."""
        return tf.cast(self._preprocess(images), tf.float32)

    def settings(self) -> dict[str, Any]:
        """Plain data that tells these views from others."""
        return {
            "size": list(self.size),
            "shorter_side": list(self._shorter_side),
            "validation_side": self._validation_side,
            "augmentation": _name(self._augment or random_crop),
            "preprocessing": _name(self._preprocess),
            "colours": [round(float(value), 3) for value in self._probe[:, 0, 0].flat],
        }

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"evaluation: shorter side {self._validation_side}, centre crop {height}x{width}, "
            f"preprocessing {_name(self._preprocess)}"
        )


def _unchanged(images: tf.Tensor) -> tf.Tensor:
    return images


def _name(function: Callable[..., Any]) -> str:
    kind = type(function).__name__
    return getattr(function, "name", None) or getattr(function, "__qualname__", kind).lstrip("_")
