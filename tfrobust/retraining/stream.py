"""Occluded images as a data set: pixels are replaced batch by batch, no image is stored twice."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data import Arrays, Share

__all__ = ["OccludedStream", "with_rows"]

# tensor of the arrays: the row of each example
_ROW = "row_of_occlusion"


def with_rows(tensors: Mapping[str, np.ndarray], classes: int) -> Arrays:
    """Examples in memory that know their row, for any number of `OccludedStream`s."""
    return Arrays({**tensors, _ROW: np.arange(len(tensors["images"]))}, classes)


class OccludedStream:
    """A `tfrobust.data.Stream` of images with some pixels in one colour.

    Args:
        arrays: of `with_rows`, with images (count, height, width, channels).
        pixels: (count, height, width) bool, which are replaced.
        colour: (channels,) float32.
    """

    def __init__(self, arrays: Arrays, pixels: np.ndarray, colour: np.ndarray):
        self.examples, self.classes = arrays.examples, arrays.classes
        self.input_shape = arrays.input_shape
        self._arrays = arrays
        self._pixels, self._colour = tf.constant(pixels), tf.constant(colour)

    def fingerprint(self) -> Any:
        """Checksums of the examples and of the pixels that are replaced, and the colour."""
        pixels = zlib.crc32(self._pixels.numpy().data)
        return [self._arrays.fingerprint(), pixels, self._colour.numpy().tolist()]

    def training_batches(
        self, batch_size: int, share: Share, *, seed: int, epoch: int, first_step: int = 0
    ) -> tf.data.Dataset:
        batches = self._arrays.training_batches(
            batch_size, share, seed=seed, epoch=epoch, first_step=first_step
        )
        return _occluded(batches, self._pixels, self._colour)

    def evaluation_batches(self, batch_size: int, *, workers: int, worker: int) -> tf.data.Dataset:
        batches = self._arrays.evaluation_batches(batch_size, workers=workers, worker=worker)
        return _occluded(batches, self._pixels, self._colour)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        return self._arrays.errors()


@functools.partial(tf.function, autograph=False)
def _occluded(batches: tf.data.Dataset, pixels: tf.Tensor, colour: tf.Tensor) -> tf.data.Dataset:
    """The same batches with some pixels replaced; traced once for data sets of one size."""

    def occlude(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        others = {name: tensor for name, tensor in batch.items() if name != _ROW}
        replaced = tf.gather(pixels, batch[_ROW])[..., None]
        return {**others, "images": tf.where(replaced, colour, batch["images"])}

    return batches.map(occlude).prefetch(2)
