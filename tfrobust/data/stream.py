"""What training reads: batches whose content depends on seed and epoch only.

A global batch is cut into equal parts, one a replica, so that every number of devices and hosts
sees the same examples in the same steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from tfrobust.errors import InputError

__all__ = ["Arrays", "Share", "Stream"]


@dataclasses.dataclass(frozen=True)
class Share:
    """Rows of every global batch that one input pipeline (one host) feeds."""

    start: int
    """First row."""
    stop: int
    """Past the last row."""
    rows: int
    """Rows of one replica; divides stop - start."""

    @classmethod
    def of(cls, batch_size: int, replicas: int = 1, hosts: int = 1, host: int = 0) -> Share:
        """The share of one host.

        Args:
            batch_size: rows of a global batch.
            replicas: over all hosts; the same number on each.
            hosts: that train together.
            host: index of this one.

        Raises:
            ValueError: the batch cannot be cut into equal parts.
        """
        if batch_size % replicas:
            raise InputError(
                f"a global batch of {batch_size} cannot be cut into {replicas} equal parts: "
                f"choose a batch size that {replicas} divides"
            )
        wide = batch_size // hosts
        return cls(host * wide, (host + 1) * wide, batch_size // replicas)


@runtime_checkable
class Stream(Protocol):
    """A data set that `fit` and `evaluate` read batch by batch."""

    examples: int
    classes: int
    input_shape: tuple[int, ...]

    def fingerprint(self) -> Any:
        """Plain data that changes when the examples, or what is done to them, change."""

    def training_batches(
        self, batch_size: int, share: Share, *, seed: int, epoch: int
    ) -> tf.data.Dataset:
        """examples // batch_size steps of images and labels in the order of (seed, epoch).

        Each step is (share.stop - share.start) / share.rows elements of `share.rows` rows.
        """

    def evaluation_batches(self, batch_size: int, *, hosts: int, host: int) -> tf.data.Dataset:
        """Every example that falls to `host`, once, in batches of up to `batch_size` rows."""

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block, errors of reading come out as errors that say what to do."""


class Arrays:
    """Examples in memory.

    Args:
        images: (count, *input) float32, checked already.
        labels: (count,) int32.
        classes: number of classes.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: int):
        self.images, self.labels = images, labels
        self.examples, self.classes = len(images), classes
        self.input_shape = images.shape[1:]

    def fingerprint(self) -> int:
        images = np.ascontiguousarray(self.images)
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(images.data))

    def training_batches(
        self, batch_size: int, share: Share, *, seed: int, epoch: int
    ) -> tf.data.Dataset:
        order = np.random.default_rng([seed, epoch]).permutation(self.examples)
        steps = self.examples // batch_size
        mine = order[: steps * batch_size].reshape(steps, batch_size)[:, share.start : share.stop]
        images, labels = self._tensors
        return (
            tf.data.Dataset.from_tensor_slices(mine.reshape(-1))
            .batch(share.rows, drop_remainder=True)
            .map(lambda rows: (tf.gather(images, rows), tf.gather(labels, rows)))
            .prefetch(2)
        )

    def evaluation_batches(self, batch_size: int, *, hosts: int, host: int) -> tf.data.Dataset:
        rows = slice(host, None, hosts)
        arrays = (self.images[rows], self.labels[rows])
        return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        if not hasattr(self, "_constants"):
            self._constants = tf.constant(self.images), tf.constant(self.labels)
        return self._constants
