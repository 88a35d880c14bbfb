"""Data sets with their value range and provenance.

`load("digits")`, "iris" and "wine" need nothing but scikit-learn; images come from
tensorflow-datasets, in its usual folder or below `TFROBUST_DATA_DIR`; Spambase comes from a file
there, or from OpenML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfrobust.data import tabular
from tfrobust.data.tabular import CorruptDataError, DataNotFoundError
from tfrobust.errors import InputError, MissingFileError

__all__ = ["CorruptDataError", "DataNotFoundError", "Dataset", "Provenance", "load"]

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a split comes from, so that a result can name its data."""

    name: str
    split: str
    source: str
    version: str
    processing: str
    examples: int
    sha256: str
    """Of the images' (or features') and labels' bytes."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split in memory."""

    images: np.ndarray
    """(count, height, width, channels) float32 in `value_range`; of a table the features,
    (count, features)."""
    labels: np.ndarray
    """(count,) int32."""
    classes: int
    value_range: tuple[float, float]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.images)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, as `fit` takes them."""
        return self.images, self.labels

    def take(self, count: int) -> Dataset:
        """The first `count` examples.

        Raises:
            ValueError: `count` is not between 1 and the number of examples.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"count must lie in 1..{len(self)}, got {count}")
        images, labels = self.images[:count], self.labels[:count]
        provenance = dataclasses.replace(
            self.provenance, examples=count, sha256=_digest(images, labels)
        )
        return dataclasses.replace(self, images=images, labels=labels, provenance=provenance)


def load(
    name: str,
    split: str = "train",
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
) -> Dataset:
    """One split of a data set: images in [0, 1], or standardised features.

    - "digits": scikit-learn's 1,797 handwritten 8x8 digits, scaled up to 28x28 bilinearly;
      1,197 / 200 / 400 train / validation / test in a fixed order. No download.
    - "mnist": the first 50,000 / last 10,000 of the training set, in tensorflow-datasets' order,
      as train / validation, and the test set (10,000); sizes as in Etmann 2019.
    - "cifar10": the first 45,000 / last 5,000 of the training set, in tensorflow-datasets' order,
      as train / validation, and the test set (10,000).
    - "iris" (150 rows, 4 features, 3 classes), "wine" (178, 13, 3): scikit-learn's. No download.
    - "spambase" (4,601 rows, 57 features, 2 classes): the file `spambase.data` in the folder, else
      OpenML's, fetched by scikit-learn and only where `download` is set.

    Tables are split 70 / 20 / 10 % into train / validation / test in a fixed order, not stratified,
    and standardised by the training split; their `value_range` (-m, m) is twice as wide as the
    whole table, so that it does not bind. See `tfrobust.tabular.standardised`.

    ImageNet does not fit in memory: `tfrobust.imagenet.load` streams it.

    Args:
        name: the data set.
        split: "train", "validation" or "test".
        data_dir: a folder that tensorflow-datasets prepared, or one that holds such a folder as
            `tensorflow_datasets`; for Spambase, one that holds its file. Default: the
            environment's TFROBUST_DATA_DIR, then tensorflow-datasets' own default.
        download: let tensorflow-datasets or scikit-learn fetch what is missing.

    Raises:
        ValueError: unknown data set or split, or "imagenet".
        DataNotFoundError: not prepared in that folder, with the ways to get it.
        CorruptDataError: the table that was found is truncated or malformed.
    """
    if name == "imagenet":
        raise InputError(
            "imagenet does not fit in memory: tfrobust.imagenet.load(split, data_dir) gives a "
            "stream that fit and evaluate read, and its arrays(count) gives a part of it"
        )
    if name not in _LOADERS:
        raise InputError(f"unknown data set {name!r}; there are {', '.join(sorted(_LOADERS))}")
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(_SPLITS)}")
    return _LOADERS[name](split, data_dir, download)


def _digits(split: str, data_dir: str | Path | None, download: bool) -> Dataset:
    import sklearn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    bounds = {"train": (0, 1197), "validation": (1197, 1397), "test": (1397, 1797)}
    rows = order[slice(*bounds[split])]
    small = bunch.images[rows, :, :, None].astype(np.float32) / 16
    images = np.clip(tf.image.resize(small, (28, 28), method="bilinear").numpy(), 0, 1)
    return _dataset(
        images,
        bunch.target[rows],
        name="digits",
        split=split,
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test set)",
        version=f"scikit-learn {sklearn.__version__}",
        processing="divided by 16, 8x8 to 28x28 bilinear, order of default_rng(0)",
    )


def _mnist(split: str, data_dir: str | Path | None, download: bool) -> Dataset:
    which = {"train": "train[:50000]", "validation": "train[50000:]", "test": "test"}[split]
    images, labels, version = _from_tfds("mnist", which, data_dir, download)
    return _dataset(
        images.astype(np.float32) / 255,
        labels,
        name="mnist",
        split=split,
        source=f"tensorflow-datasets mnist, {which}",
        version=version,
        processing="divided by 255",
    )


def _cifar10(split: str, data_dir: str | Path | None, download: bool) -> Dataset:
    which = {"train": "train[:45000]", "validation": "train[45000:]", "test": "test"}[split]
    images, labels, version = _from_tfds("cifar10", which, data_dir, download)
    return _dataset(
        # one float32 copy, not two: the training images take half a gigabyte
        np.divide(images, 255, dtype=np.float32),
        labels,
        name="cifar10",
        split=split,
        source=f"tensorflow-datasets cifar10, {which}",
        version=version,
        processing="divided by 255",
    )


def _table(name: str) -> Callable[[str, str | Path | None, bool], Dataset]:
    def load_split(split: str, data_dir: str | Path | None, download: bool) -> Dataset:
        table = tabular.read(name, _folder(data_dir), download=download)
        features, labels, value_range = tabular.standardised(table, split)
        return _dataset(
            features,
            labels,
            classes=table.classes,
            value_range=value_range,
            name=name,
            split=split,
            source=table.source,
            version=table.version,
            processing=tabular.PROCESSING,
        )

    return load_split


_LOADERS: dict[str, Callable[[str, str | Path | None, bool], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    **{name: _table(name) for name in ("iris", "wine", "spambase")},
}


def _from_tfds(
    name: str, split: str, data_dir: str | Path | None, download: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Images uint8, labels and version of a prepared data set."""
    import tensorflow_datasets as tfds

    folder = _tfds_folder(data_dir)
    try:
        builder = tfds.builder(name, data_dir=folder, try_gcs=False)
        if download:
            builder.download_and_prepare()
        if not Path(builder.data_dir).is_dir():
            raise MissingFileError(builder.data_dir)
        rows = builder.as_dataset(split=split, batch_size=-1)
    except Exception as error:
        where = folder or "tensorflow-datasets' default folder"
        raise DataNotFoundError(
            f"{name} is not prepared in {where} ({type(error).__name__}: {error}). Either let "
            f'tensorflow-datasets fetch it, tfrobust.data.load("{name}", download=True), on a '
            "machine with internet access; or set TFROBUST_DATA_DIR (or data_dir) to a folder "
            f"that holds tensorflow_datasets/{name}, copied from such a machine."
        ) from error
    return rows["image"].numpy(), rows["label"].numpy(), str(builder.version)


def _folder(data_dir: str | Path | None) -> str | Path | None:
    return data_dir or os.environ.get("TFROBUST_DATA_DIR") or None


def _tfds_folder(data_dir: str | Path | None) -> str | None:
    folder = _folder(data_dir)
    if folder is None:
        return None
    inside = Path(folder) / "tensorflow_datasets"
    return str(inside if inside.is_dir() else folder)


def _dataset(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int = 10,
    value_range: tuple[float, float] = (0.0, 1.0),
    **provenance: str,
) -> Dataset:
    images = np.ascontiguousarray(images, np.float32)
    labels = np.ascontiguousarray(labels, np.int32)
    return Dataset(
        images=images,
        labels=labels,
        classes=classes,
        value_range=value_range,
        provenance=Provenance(**provenance, examples=len(images), sha256=_digest(images, labels)),
    )


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
