"""`load`: every data set by its name.

"digits", "iris" and "wine" are part of scikit-learn; "kim_toy" is sampled; images come from
tensorflow-datasets, in its default folder or below `TFROBUST_DATA_DIR`; Spambase from a file there,
or from OpenML; ImageNet is streamed from disk.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import tensorflow as tf

from tfrobust.data import imagenet, tabular
from tfrobust.data.arrays import Dataset, dataset
from tfrobust.data.tabular import DataNotFoundError
from tfrobust.data.toy import kim_toy
from tfrobust.errors import InputError, MissingFileError

__all__ = ["load"]

_DataDir = str | Path | None
_SPLITS = ("train", "validation", "test")
# the last 10,000 or 5,000 of the training set validate
_TFDS_SPLITS = {
    "mnist": ("train[:50000]", "train[50000:]", "test"),
    "fashion_mnist": ("train[:50000]", "train[50000:]", "test"),
    "cifar10": ("train[:45000]", "train[45000:]", "test"),
}


@overload
def load(
    name: Literal["imagenet"],
    split: str = ...,
    *,
    data_dir: _DataDir = ...,
    **settings: Any,
) -> imagenet.ImageStream: ...


@overload
def load(
    name: str,
    split: str = ...,
    *,
    data_dir: _DataDir = ...,
    download: bool = ...,
    standardized_by: tabular.StandardizedBy = ...,
) -> Dataset: ...


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: _DataDir = None,
    download: bool = False,
    **settings: Any,
) -> Dataset | imagenet.ImageStream:
    """One split of a data set: images in [0, 1], or standardised features; ImageNet as a stream.

    `Dataset.rescaled(-1, 1)` gives images in [-1, 1].

    - "digits": scikit-learn's 1,797 handwritten 8x8 digits, scaled up to 28x28 bilinearly;
      1,197 / 200 / 400 train / validation / test in a fixed order. No download.
    - "mnist": the first 50,000 / last 10,000 of the training set, in tensorflow-datasets' order,
      as train / validation, and the test set (10,000); sizes as in Etmann 2019.
    - "fashion_mnist": 10 kinds of clothes, 28x28 grey; split as "mnist".
    - "cifar10": the first 45,000 / last 5,000 of the training set, in tensorflow-datasets' order,
      as train / validation, and the test set (10,000).
    - "iris" (150 rows, 4 features, 3 classes), "wine" (178, 13, 3): scikit-learn's. No download.
    - "spambase" (4,601 rows, 57 features, 2 classes): the file `spambase.data` in the folder, else
      OpenML's, fetched by scikit-learn and only where `download` is set.
    - "kim_toy" (6,000 points per split, 2 features in [-1, 1], 2 classes): the two Gaussians of
      Kim 2019 by `tfrobust.data.kim_toy` with seed 0. No download.
    - "imagenet": a stream that `fit` and `evaluate` read batch by batch; RGB in 0..255 unless
      `preprocess` says otherwise. See `tfrobust.imagenet.load`.

    Tables are standardised by all rows and split 70 / 20 / 10 % into train / test / validation in a
    fixed order, not stratified, as in Peck 2017; their `value_range` (-m, m) is twice as wide as
    the whole table, so that it does not constrain attacks.

    Args:
        name: the data set.
        split: "train", "validation" or "test"; ImageNet has no "test".
        data_dir: a folder that tensorflow-datasets prepared, or one that holds such a folder as
            `tensorflow_datasets`; for Spambase, one that holds its file; for ImageNet, one that
            holds it in any of three layouts. Default: the environment's TFROBUST_DATA_DIR, then
            tensorflow-datasets' own default.
        download: let tensorflow-datasets or scikit-learn fetch what is missing; not ImageNet.
        settings: for ImageNet `preprocess`, `size`, `limit` and the other options of
            `tfrobust.imagenet.load`; for tables `standardized_by`: "training" takes means and
            standard deviations from the training split alone.

    Raises:
        InputError: unknown data set or split, or a setting that the data set does not take.
        DataNotFoundError: not prepared in that folder, with the ways to get it.
        CorruptDataError: the table is truncated or malformed.
    """
    if name == "imagenet":
        if download:
            raise InputError("imagenet cannot be downloaded: leave download out")
        return imagenet.load(split, data_dir=data_dir, **settings)
    if name not in _LOADERS:
        known = ", ".join(sorted([*_LOADERS, "imagenet"]))
        raise InputError(f"unknown data set {name!r}; there are {known}")
    unknown = set(settings) - ({"standardized_by"} if name in _TABLES else set())
    if unknown:
        raise InputError(
            f"{name} takes no {', '.join(sorted(unknown))}: these are options of imagenet, and "
            "standardized_by of tables. Apply a function to the loaded images instead"
        )
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(_SPLITS)}")
    return _LOADERS[name](split, data_dir, download, **settings)


def _digits(split: str, data_dir: _DataDir, download: bool) -> Dataset:
    import sklearn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    bounds = {"train": (0, 1197), "validation": (1197, 1397), "test": (1397, 1797)}
    rows = order[slice(*bounds[split])]
    small = bunch.images[rows, :, :, None].astype(np.float32) / 16
    images = np.clip(tf.image.resize(small, (28, 28), method="bilinear").numpy(), 0, 1)
    return dataset(
        images,
        bunch.target[rows],
        name="digits",
        split=split,
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test set)",
        version=f"scikit-learn {sklearn.__version__}",
        processing="divided by 16, 8x8 to 28x28 bilinear, order of default_rng(0)",
    )


def _pictures(name: str, split: str, data_dir: _DataDir, download: bool) -> Dataset:
    tfds_split = _TFDS_SPLITS[name][_SPLITS.index(split)]
    images, labels, version = _from_tfds(name, tfds_split, data_dir, download)
    return dataset(
        # one float32 copy, not two: the training images of CIFAR-10 take half a gigabyte
        np.divide(images, 255, dtype=np.float32),
        labels,
        name=name,
        split=split,
        source=f"tensorflow-datasets {name}, {tfds_split}",
        version=version,
        processing="divided by 255",
    )


def _kim_toy(split: str, data_dir: _DataDir, download: bool) -> Dataset:
    return kim_toy(split)


def _table(name: str) -> Callable[..., Dataset]:
    def load_split(
        split: str,
        data_dir: _DataDir,
        download: bool,
        standardized_by: tabular.StandardizedBy = "all",
    ) -> Dataset:
        table = tabular.read(name, _folder(data_dir), download=download)
        features, labels, value_range = tabular.standardised(table, split, standardized_by)
        return dataset(
            features,
            labels,
            classes=table.classes,
            value_range=value_range,
            name=name,
            split=split,
            source=table.source,
            version=table.version,
            processing=tabular.processing(standardized_by),
        )

    return load_split


_TABLES = ("iris", "wine", "spambase")
_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": _digits,
    "kim_toy": _kim_toy,
    **{name: functools.partial(_pictures, name) for name in _TFDS_SPLITS},
    **{name: _table(name) for name in _TABLES},
}


def _from_tfds(
    name: str, split: str, data_dir: _DataDir, download: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Images (uint8), labels and version of a prepared data set."""
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
        location = folder or "tensorflow-datasets' default folder"
        raise DataNotFoundError(
            f"{name} is not prepared in {location} ({type(error).__name__}: {error}). Either let "
            f'tensorflow-datasets fetch it, tfrobust.data.load("{name}", download=True), on a '
            "machine with internet access; or set TFROBUST_DATA_DIR (or data_dir) to a folder "
            f"that holds tensorflow_datasets/{name}, copied from such a machine."
        ) from error
    return rows["image"].numpy(), rows["label"].numpy(), str(builder.version)


def _folder(data_dir: _DataDir) -> _DataDir:
    return data_dir or os.environ.get("TFROBUST_DATA_DIR") or None


def _tfds_folder(data_dir: _DataDir) -> str | None:
    folder = _folder(data_dir)
    if folder is None:
        return None
    subfolder = Path(folder) / "tensorflow_datasets"
    return str(subfolder if subfolder.is_dir() else folder)
