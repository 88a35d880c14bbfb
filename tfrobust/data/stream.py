"""The data of training: batches of named tensors that depend on seed and epoch only.

A global batch is cut into equal parts, one per replica, so that the examples of each step do not
depend on the number of devices and workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from tfrobust.classifier import as_labels
from tfrobust.data.windows import cut_windows, draw_windows
from tfrobust.errors import InputError

__all__ = ["Arrays", "Share", "Stream"]

Augmentation = Literal["crop4_flip"]

_REQUIRED = ("images", "labels")
# nothing to tune; with tuning on, the steps of about every second epoch took 1.7 times as long
_NOT_TUNED = tf.data.Options()
_NOT_TUNED.autotune.enabled = False


@dataclasses.dataclass(frozen=True)
class Share:
    """Rows of every global batch that the input pipeline of one worker reads."""

    start: int
    """First row."""
    stop: int
    """Past the last row."""
    rows: int
    """Rows of one replica; divides stop - start."""

    @classmethod
    def of(cls, batch_size: int, replicas: int = 1, workers: int = 1, worker: int = 0) -> Share:
        """The share of one worker.

        Args:
            batch_size: rows of a global batch.
            replicas: number over all workers, equally many on each.
            workers: number of workers.
            worker: index of this one.

        Raises:
            ValueError: the batch cannot be cut into equal parts.
        """
        if batch_size % replicas:
            raise InputError(
                f"a global batch of {batch_size} cannot be cut into {replicas} equal parts: "
                f"choose a batch size that {replicas} divides"
            )
        width = batch_size // workers
        return cls(worker * width, (worker + 1) * width, batch_size // replicas)


@runtime_checkable
class Stream(Protocol):
    """A data set that `fit` and `evaluate` read batch by batch.

    A batch is a dict of tensors with one row per example: "images" (rows, *input) float32,
    "labels" (rows,) int32, and any others.
    """

    examples: int
    classes: int
    input_shape: tuple[int, ...]

    def fingerprint(self) -> Any:
        """Plain data that changes with the examples and their preprocessing."""

    def training_batches(
        self, batch_size: int, share: Share, *, seed: int, epoch: int, first_step: int = 0
    ) -> tf.data.Dataset:
        """examples // batch_size steps in the order of (seed, epoch), from `first_step` on.

        Each step has (share.stop - share.start) / share.rows elements of `share.rows` rows. Resumed
        at `first_step`, an epoch yields the same batches as an uninterrupted one.
        """

    def evaluation_batches(self, batch_size: int, *, workers: int, worker: int) -> tf.data.Dataset:
        """The examples of `worker` of `workers`, each once, in batches of up to `batch_size`."""

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """In the block, errors of reading are raised with a message that says what to do."""


class Arrays:
    """Examples in memory: named arrays, sharded and shuffled consistently.

    Args:
        tensors: "images" (count, *input), "labels" (count,) and any others (count, ...): numbers,
            of which floats become float32.
        classes: number of classes.
        augmentation: of training batches; "crop4_flip" pads images with 4 zeros on each side, cuts
            a window of their size out at random, and flips it horizontally with probability 1/2,
            anew in every epoch. "targets" are cut and flipped alike.

    Raises:
        ValueError: images or labels are missing, a name is not an identifier, or an array is not
            of finite numbers, or has another number of rows than the images; labels out of range;
            an unknown augmentation, or images or targets that it cannot cut.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        classes: int,
        *,
        augmentation: Augmentation | None = None,
    ):
        missing = [name for name in _REQUIRED if name not in tensors]
        if missing:
            raise InputError(f"no {missing[0]} among the tensors {', '.join(map(str, tensors))}")
        self.examples, self.classes = len(tensors["images"]), classes
        self.tensors = {name: self._checked(name, array) for name, array in tensors.items()}
        self.input_shape = self.tensors["images"].shape[1:]
        self.augmentation = augmentation
        self._cut = _names_to_cut(augmentation, self.tensors)
        self._constants: dict[str, tf.Tensor] = {}
        # traced once, not once per epoch, at the cost of a training step each
        self._batches = tf.function(self._pipeline, autograph=False)

    def _checked(self, name: str, array: Any) -> np.ndarray:
        if not (isinstance(name, str) and name.isidentifier()):
            raise InputError(
                f"a tensor's name must be letters, digits and underscores, got {name!r}"
            )
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
        elif array.dtype.kind not in "biu":
            raise InputError(f"{name} must be numbers, got {array.dtype}")
        if array.shape[:1] != (self.examples,):
            raise InputError(
                f"{name} must have one row per image, {self.examples}, got shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name} has NaN or infinite values")
        return array if name != "labels" else as_labels(array, self.examples, self.classes, name)

    def fingerprint(self) -> int:
        """A checksum of all tensors, their names and the augmentation."""
        checksum = 0
        if self.augmentation is not None:
            checksum = zlib.crc32(self.augmentation.encode())
        for name, array in sorted(self.tensors.items()):
            checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return checksum

    def training_batches(
        self, batch_size: int, share: Share, *, seed: int, epoch: int, first_step: int = 0
    ) -> tf.data.Dataset:
        order = np.random.default_rng([seed, epoch]).permutation(self.examples)
        steps = self.examples // batch_size
        rows = order[: steps * batch_size].reshape(steps, batch_size)
        rows = rows[first_step:, share.start : share.stop].reshape(-1)
        if not self._constants:
            self._constants = {name: tf.constant(array) for name, array in self.tensors.items()}
        elements = (tf.constant(rows),)
        if self._cut:
            draws = draw_windows(self.examples, seed=seed, epoch=epoch)
            elements += tuple(tf.constant(each[rows]) for each in draws)
        return self._batches(elements, share.rows)

    def _pipeline(self, elements: tuple[tf.Tensor, ...], batch_size: int) -> tf.data.Dataset:
        def gathered(batch: tf.Tensor, *draws: tf.Tensor) -> dict[str, tf.Tensor]:
            tensors = {n: tf.gather(tensor, batch) for n, tensor in self._constants.items()}
            return tensors | {name: cut_windows(tensors[name], *draws) for name in self._cut}

        batches = tf.data.Dataset.from_tensor_slices(elements)
        batches = batches.batch(batch_size, drop_remainder=True)
        return batches.map(gathered).prefetch(2).with_options(_NOT_TUNED)

    def evaluation_batches(self, batch_size: int, *, workers: int, worker: int) -> tf.data.Dataset:
        rows = slice(worker, None, workers)
        arrays = {name: array[rows] for name, array in self.tensors.items()}
        batches = tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)
        return batches.with_options(_NOT_TUNED)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def _names_to_cut(
    augmentation: Augmentation | None, tensors: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    """The tensors that the augmentation changes, checked.

    Raises:
        InputError: an unknown augmentation, images that are not (count, height, width, channels),
            or targets of another height or width.
    """
    if augmentation is None:
        return ()
    if augmentation != "crop4_flip":
        raise InputError(f'augmentation must be "crop4_flip" or None, got {augmentation!r}')
    names = tuple(name for name in ("images", "targets") if name in tensors)
    size = tensors["images"].shape[1:3]
    for name in names:
        shape = tensors[name].shape
        if len(shape) != 4 or shape[1:3] != size:
            raise InputError(
                f'"crop4_flip" cuts images and targets (count, height, width, channels) of one '
                f"size, got {name} of shape {shape}"
            )
    return names
