"""Crops of images: Etmann 2019's on ImageNet, random for training and centred for validation.

An image is resized so that its shorter side has a given length, bilinearly without antialiasing,
and a window is cut out. Only the pixels of the window are computed, so that an elongated image
costs no more than others.

The released code ran in TensorFlow 1, whose `resize_images` maps output pixel i to i * old / new in
the source; here, as in TensorFlow 2, pixel centres correspond: (i + 1/2) * old / new - 1/2. The
difference is a shift of (old / new - 1) / 2 source pixels.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrobust.errors import InputError

__all__ = ["centre_crop", "check_crop", "check_scales", "random_crop"]

_HUE = 0.06


def check_crop(size: tuple[int, int], shorter_side: int) -> None:
    """Refuse a window that does not fit into every image resized to `shorter_side`.

    Raises:
        InputError: it does not fit, or a length is less than 1.
    """
    if min(size) < 1:
        raise InputError(f"a crop has at least one pixel per side, got size={tuple(size)}")
    if shorter_side < max(size):
        raise InputError(
            f"a crop of {size[0]}x{size[1]} does not fit into an image whose shorter side is "
            f"resized to {shorter_side}: choose a smaller crop or a side of at least {max(size)}"
        )


def random_crop(
    image: Any,
    seed: Any,
    size: tuple[int, int] = (256, 256),
    shorter_side: tuple[int, int] = (258, 512),
) -> tf.Tensor:
    """The training crop: random resize, crop, hue jitter and horizontal flip.

    The shorter side is resized to an integer drawn uniformly from `shorter_side`, ends included;
    the position of the window is uniform over all valid ones; the hue is rotated by up to .06 of a
    circle; each image is flipped with probability 1/2. The released code draws from the same ranges
    without their upper ends.

    Args:
        image: (height, width, 3), RGB in 0..255.
        seed: two integers, which determine every draw.
        size: height and width of the window.
        shorter_side: least and largest length that the shorter side is resized to.

    Returns:
        (*size, 3) float32, RGB in 0..255.

    Raises:
        InputError: the window does not fit into the smallest resized image.
    """
    check_scales(size, shorter_side)
    seeds = [tf.random.fold_in(seed, draw) for draw in range(5)]
    side = _random_integer(seeds[0], *shorter_side)
    resized = _resized_shape(image, side)
    top, left = (
        _random_integer(seeds[1], 0, resized[0] - size[0]),
        _random_integer(seeds[2], 0, resized[1] - size[1]),
    )
    window = _window(image, resized, tf.stack([top, left]), size)
    window = tf.image.stateless_random_hue(window, _HUE, seeds[3])
    window = tf.image.stateless_random_flip_left_right(window, seeds[4])
    return tf.clip_by_value(window, 0.0, 255.0)


def centre_crop(
    image: Any, size: tuple[int, int] = (256, 256), shorter_side: int = 256
) -> tf.Tensor:
    """The validation crop: the centre of the image, resized to `shorter_side`.

    Args:
        image: (height, width, 3), RGB in 0..255.
        size: height and width of the window.
        shorter_side: length that the shorter side is resized to.

    Returns:
        (*size, 3) float32, RGB in 0..255.

    Raises:
        InputError: the window does not fit.
    """
    check_crop(size, shorter_side)
    resized = _resized_shape(image, shorter_side)
    return tf.clip_by_value(_window(image, resized, (resized - size) // 2, size), 0.0, 255.0)


def check_scales(size: tuple[int, int], shorter_side: tuple[int, int]) -> None:
    """Refuse a range of lengths that is empty, or in which a window does not always fit.

    Raises:
        InputError: the range is empty, or the window does not fit at its lower end.
    """
    low, high = shorter_side
    check_crop(size, low)
    if high < low:
        raise InputError(f"shorter_side runs from {low} down to {high}: give (least, largest)")


def _random_integer(seed: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
    """Uniform over low .. high, both ends included."""
    return tf.random.stateless_uniform([], seed, low, high + 1, tf.int32)


def _resized_shape(image: Any, side: Any) -> tf.Tensor:
    """Height and width with the shorter side `side`, rounded as in the released code."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
    side = tf.cast(side, tf.int64)
    # int(side / shorter * longer + 1), which makes a square image one pixel taller than wide
    tall = tf.stack([side * height // width + 1, side])
    wide = tf.stack([side, side * width // height + 1])
    return tf.cast(tf.where(height < width, wide, tall), tf.int32)


def _window(image: Any, resized: tf.Tensor, corner: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The window of `tf.image.resize(image, resized)` whose top left pixel is `corner`."""
    original = tf.shape(image)[:2]
    windows = tf.raw_ops.ScaleAndTranslate(
        images=tf.expand_dims(image, 0),
        size=size,
        scale=tf.cast(resized, tf.float32) / tf.cast(original, tf.float32),
        translation=-tf.cast(corner, tf.float32),
        kernel_type="triangle",
        antialias=False,
    )
    return tf.ensure_shape(windows[0], (*size, 3))
