"""Random windows of small images that were padded with zeros, and random horizontal flips."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

__all__ = ["cut_windows", "draw_windows"]

_PADDING = 4


def draw_windows(examples: int, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each example's window starts in an epoch, and whether it is flipped.

    Drawn for all examples at once, so that devices and resumed runs see the same windows.

    Returns:
        (examples, 2) int32, row and column in 0..8; (examples,) bool.
    """
    rng = np.random.default_rng([seed, epoch, 1])
    corners = rng.integers(0, 2 * _PADDING + 1, (examples, 2)).astype(np.int32)
    return corners, rng.random(examples) < 0.5


def cut_windows(images: tf.Tensor, corners: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
    """Windows of the images' size out of the images with 4 zeros on each side.

    Args:
        images: (batch, height, width, channels).
        corners: (batch, 2) int32, row and column of the windows.
        flipped: (batch,) bool, horizontally.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [_PADDING, _PADDING], [_PADDING, _PADDING], [0, 0]])
    rows = corners[:, :1] + tf.range(height)
    columns = tf.range(width)
    columns = corners[:, 1:] + tf.where(flipped[:, None], columns[::-1], columns)
    cut = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cut, columns, axis=2, batch_dims=1)
