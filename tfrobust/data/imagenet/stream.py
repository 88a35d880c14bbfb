"""ImageNet, read from disk batch by batch.

    stream = load("train", data_dir="/data/imagenet", preprocess=...)
    fit(model, stream, ...)

The order of an epoch and all random draws are determined by (seed, epoch) and do not depend on the
number of readers: each worker decodes its own rows of the same global batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.data.arrays import Provenance
from tfrobust.data.imagenet.preprocessor import Augment, Preprocess, Preprocessor
from tfrobust.data.imagenet.sources import Source, find_source
from tfrobust.data.imagenet.tfrecords import Example
from tfrobust.data.images import CorruptImageLog, TooManyCorruptImagesError, decode
from tfrobust.data.stream import Share
from tfrobust.errors import InputError

__all__ = ["Examples", "ImageStream", "load"]

_SPLITS = ("train", "validation")
_SHARDS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Examples:
    """Centre-cropped examples in memory."""

    images: np.ndarray
    """(count, height, width, channels) float32, preprocessed."""
    labels: np.ndarray
    """(count,) int32."""
    names: tuple[str, ...]
    """File names."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, as `fit` takes them."""
        return self.images, self.labels


def load(
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    source: str | None = None,
    classes: int = 1000,
    size: tuple[int, int] = (256, 256),
    shorter_side: tuple[int, int] = (258, 512),
    validation_side: int = 256,
    augment: Augment | None = None,
    preprocess: Preprocess | None = None,
    value_range: Any = None,
    limit: int | None = None,
    max_corrupt: int = 10,
) -> ImageStream:
    """One split of ImageNet; crops and augmentation of Etmann 2019 by default.

    Searches, in this order, for

    1. "tree": `<data_dir>/train/<wnid>/*.JPEG` and `val` (or `validation`);
    2. "tfrecord": the shards of TensorFlow's build_imagenet_data.py,
       `<data_dir>/train-00000-of-01024` and `validation-00000-of-00128`, labels 1..1000;
    3. "tfds": what tensorflow-datasets prepared, `<data_dir>/imagenet2012/<version>`.

    In all three the class of an image is the position of its wnid among the sorted wnids, as in
    Keras Applications. Shards are indexed once, by the headers of their records. Nothing is
    downloaded.

    Args:
        split: "train" or "validation".
        data_dir: the folder, or one that holds it as `imagenet` (1, 2) or `tensorflow_datasets`
            (3). Default: the environment's TFROBUST_DATA_DIR, then tensorflow-datasets' own folder.
        source: "tree", "tfrecord" or "tfds", to search for this one only.
        classes: expected number of classes.
        size: height and width of the images.
        shorter_side: training scales the shorter side to a length drawn from this range.
        validation_side: evaluation scales it to this length.
        augment: takes an RGB image (height, width, 3) uint8 and two integers as seed, and returns
            (*size, 3) float32; default: `random_crop` in `tfrobust/data/crops.py`.
        preprocess: maps RGB images (count, *size, 3) float32 in 0..255 to the network's input.
        value_range: least and largest value of the network's input; default: the attribute
            `value_range` of `preprocess`.
        limit: use this many examples only, a fixed random choice.
        max_corrupt: distinct corrupt images that one process may skip, each with a warning: those
            that cannot be decoded, and records of shards that differ from their checksum.

    Raises:
        ValueError: a setting is out of range, or the split has another number of classes, an empty
            class folder, or an empty or damaged shard.
        DataNotFoundError: none of the three has the split, or shards are missing; says what is
            available and what to do.
    """
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(_SPLITS)}")
    preprocessor = Preprocessor(
        size=size,
        shorter_side=shorter_side,
        validation_side=validation_side,
        augment=augment,
        preprocess=preprocess,
        value_range=value_range,
    )
    files = find_source(split, _folder(data_dir), classes, source)
    return ImageStream(files, split, classes, preprocessor, limit=limit, max_corrupt=max_corrupt)


def _folder(data_dir: str | Path | None) -> Path:
    folder = data_dir or os.environ.get("TFROBUST_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(folder or "~/tensorflow_datasets").expanduser()


class ImageStream:
    """A split of ImageNet on disk, as `fit` and `evaluate` read it; `load` returns one.

    Images are decoded in parallel, a few batches ahead. Corrupt ones are named, counted and
    skipped; in training each is replaced by the next intact one in the epoch's order, so that every
    worker takes the same number of steps on the same batches.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        classes: int,
        preprocessor: Preprocessor,
        *,
        limit: int | None = None,
        max_corrupt: int = 10,
    ):
        self._source, self._preprocessor = source, preprocessor
        self._log = CorruptImageLog(max_corrupt)
        # created once: TensorFlow never releases a Python function that a graph calls
        self._read_training = self._log.recording(self._training_example)
        self._read_evaluation = self._log.recording(self._evaluation_example)
        self._rows = _choice(len(source), limit)
        self.examples, self.classes = len(self._rows), classes
        self.input_shape = preprocessor.input_shape
        self.value_range = preprocessor.value_range
        chosen = f"; {limit} of {len(source)} examples, chosen by default_rng(0)" if limit else ""
        self.provenance = Provenance(
            name="imagenet",
            split=split,
            source=source.location,
            version=source.version,
            processing=f"{preprocessor}{chosen}; sha256 of file names and sizes, not of pixels",
            examples=self.examples,
            sha256=source.sha256,
        )

    def __len__(self) -> int:
        return self.examples

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the corrupt images that this process has skipped."""
        return self._log.names

    def fingerprint(self) -> dict[str, Any]:
        """Files, examples used, crops and preprocessing."""
        files = {"sha256": self.provenance.sha256, "examples": self.examples}
        return files | {"classes": self.classes} | self._preprocessor.settings()

    def training_batches(
        self, batch_size: int, share: Share, *, seed: int, epoch: int, first_step: int = 0
    ) -> tf.data.Dataset:
        """Steps of augmented images and labels from `first_step` on, in the order of (seed, epoch).

        Element e of the order is row e % batch_size of step e // batch_size, for every share.
        Records are shuffled within groups of 16 shards, which spares slow disks; files of one image
        are shuffled over the whole split. About four batches of the share are in memory at a time,
        and as many images being decoded as there are cores, or 16.
        """
        steps = self.examples // batch_size
        positions = np.arange(steps * batch_size).reshape(steps, batch_size)
        positions = positions[first_step:, share.start : share.stop].ravel()
        rows = self._order(seed, epoch)[positions]
        pair = np.random.SeedSequence([seed, epoch]).generate_state(2).view(np.int32)

        def element(position: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            arguments = [row, position, np.int64(seed), np.int64(epoch)]
            pixels, label = tf.numpy_function(self._read_training, arguments, (tf.uint8, tf.int32))
            pixels, label = tf.ensure_shape(pixels, (None, None, 3)), tf.ensure_shape(label, ())
            return self._preprocessor.training_crop(
                pixels, tf.random.fold_in(pair, position)
            ), label

        to_network = self._preprocessor.network_input
        return (
            tf.data.Dataset.from_tensor_slices((positions, rows))
            .map(element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(share.rows, drop_remainder=True)
            .map(lambda images, labels: {"images": to_network(images), "labels": labels})
            .prefetch(2)
        )

    def evaluation_batches(
        self, batch_size: int, *, workers: int = 1, worker: int = 0
    ) -> tf.data.Dataset:
        """Centre crops and labels of all intact examples of `worker`, each once."""
        crops = self._crops(self._rows[worker::workers], batch_size)
        return crops.map(lambda images, labels, _: {"images": images, "labels": labels}).prefetch(2)

    def take(self, count: int, *, seed: int | None = None) -> Examples:
        """The first `count` intact examples, centre-cropped; with a seed, a random choice of them.

        A tree is sorted by class: give a seed for a few images of many classes. Fewer than `count`
        are returned where too many are corrupt.

        Raises:
            InputError: `count` is not between 1 and the number of examples.
            TooManyCorruptImagesError: too many images are corrupt, or all.
        """
        if not 1 <= count <= self.examples:
            raise InputError(f"count must lie in 1..{self.examples}, got {count}")
        rows = self._rows
        if seed is not None:
            rows = rows[np.random.default_rng(seed).permutation(self.examples)]
        images = np.empty((count, *self.input_shape), np.float32)
        labels, names = np.empty(count, np.int32), []
        bar = tqdm(total=count, desc="images", unit="image", delay=2, leave=False, disable=None)
        with bar, self.errors():
            for batch, labels_, names_ in self._crops(rows, 1).take(count).as_numpy_iterator():
                images[len(names)], labels[len(names)] = batch[0], labels_[0]
                names.append(names_[0].decode())
                bar.update(1)
        if not names:
            raise TooManyCorruptImagesError(f"all {self.examples} images are corrupt")
        return Examples(images[: len(names)], labels[: len(names)], tuple(names))

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """In the block, errors of reading are raised as such, not as TensorFlow's errors."""
        return self._log.errors()

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        shard = np.searchsorted(self._source.shards, self._rows, side="right") - 1
        group = rng.permutation(len(self._source.shards))[shard] // _SHARDS_AT_ONCE
        return self._rows[np.lexsort((rng.random(self.examples), group))]

    def _example(self, index: int) -> tuple[np.ndarray, Example] | None:
        def read() -> tuple[np.ndarray, Example]:
            example = self._source.read(index)
            return decode(example.encoded), example

        return self._log.attempt(index, lambda: self._source.name(index), read)

    def _training_example(
        self, row: np.ndarray, position: np.ndarray, seed: np.ndarray, epoch: np.ndarray
    ) -> tuple[np.ndarray, np.int32]:
        """Pixels and label of a row, or of the next intact one in the order of (seed, epoch)."""
        decoded = self._example(int(row))
        if decoded is None:
            following = np.roll(self._order(int(seed), int(epoch)), -int(position))
            decoded = next(filter(None, map(self._example, map(int, following))), None)
        if decoded is None:
            raise TooManyCorruptImagesError(f"all {self.examples} images are corrupt")
        pixels, example = decoded
        return pixels, np.int32(example.label)

    def _evaluation_example(self, row: np.ndarray) -> tuple[np.ndarray, np.int32, bytes]:
        """Pixels, label and name of a row; no pixels where it is corrupt."""
        decoded = self._example(int(row))
        if decoded is None:
            return np.empty((0, 0, 3), np.uint8), np.int32(0), b""
        pixels, example = decoded
        return pixels, np.int32(example.label), example.name.encode()

    def _crops(self, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """Batches of images, labels and names of the intact examples among `rows`."""

        def element(row: tf.Tensor) -> tuple[tf.Tensor, ...]:
            types = (tf.uint8, tf.int32, tf.string)
            pixels, label, name = tf.numpy_function(self._read_evaluation, [row], types)
            shapes = ((None, None, 3), (), ())
            return tuple(map(tf.ensure_shape, (pixels, label, name), shapes))

        def crop(pixels: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return self._preprocessor.evaluation_crop(pixels), *rest

        return (
            tf.data.Dataset.from_tensor_slices(rows)
            .map(element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .filter(lambda pixels, *rest: tf.size(pixels) > 0)
            .map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(batch_size)
            .map(lambda images, *rest: (self._preprocessor.network_input(images), *rest))
        )


def _choice(examples: int, limit: int | None) -> np.ndarray:
    if limit is None:
        return np.arange(examples)
    if not 1 <= limit <= examples:
        raise InputError(f"limit must lie in 1..{examples}, got {limit}")
    return np.sort(np.random.default_rng(0).permutation(examples)[:limit])
