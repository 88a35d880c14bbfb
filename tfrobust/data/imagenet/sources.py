"""ImageNet on disk: class folders, or TFRecord shards in one of two layouts.

Every source reads single examples by index, so that the order of an epoch is a permutation and a
worker reads only its share of the rows.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from tfrobust.data.imagenet.tfrecords import (
    BUILD_IMAGENET_DATA,
    TFDS,
    THREADS,
    Example,
    Records,
    digest,
    open_records,
)
from tfrobust.data.images import SUFFIXES
from tfrobust.data.tabular import DataNotFoundError
from tfrobust.errors import InputError, ShortShardWarning

__all__ = ["Source", "Tree", "find_source"]

_SHARD = re.compile(r"(train|validation)-(\d{5})-of-(\d{5})")


class Source(Protocol):
    """One split on disk."""

    location: str
    """Kind and folder, for messages and provenance."""
    version: str
    sha256: str
    """Of the sorted file names and sizes."""
    shards: np.ndarray
    """(shards,) index of the first example of each shard; (1,) for one file per image."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example:
        """One example.

        Raises:
            CorruptImageError: the record holds no image.
            InputError: the label is out of range.
            OSError: the file cannot be read.
        """

    def name(self, index: int) -> str:
        """The example's name in messages."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """Class folders of image files."""

    folder: Path
    files: tuple[str, ...]
    labels: np.ndarray
    sha256: str
    version: str = "files"

    @property
    def location(self) -> str:
        return f"class folders in {self.folder}"

    @property
    def shards(self) -> np.ndarray:
        return np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Example:
        encoded = (self.folder / self.files[index]).read_bytes()
        return Example(encoded, int(self.labels[index]), self.files[index])

    def name(self, index: int) -> str:
        return str(self.folder / self.files[index])


def find_source(split: str, folder: Path, classes: int, kind: str | None = None) -> Source:
    """The split in `folder`, or in its subfolder "imagenet" or "tensorflow_datasets".

    Args:
        split: "train" or "validation".
        folder: to search.
        classes: expected number of classes.
        kind: "tree", "tfrecord" or "tfds"; default: the first of these that has the split.

    Raises:
        DataNotFoundError: none has the split, or shards are missing; lists the available splits.
        InputError: the split has another number of classes or an empty class, or is ambiguous.
    """
    if kind is not None and kind not in _KINDS:
        raise InputError(f"unknown source {kind!r}; there are {', '.join(_KINDS)}")
    available = []
    for layout in _KINDS if kind is None else [kind]:
        splits_in, subfolder = _KINDS[layout]
        for root in (folder, folder / subfolder):
            splits = splits_in(root, classes) if root.is_dir() else {}
            if split in splits:
                return splits[split]()
            available += [f"{root} holds {name} ({layout})" for name in splits]
    raise DataNotFoundError(_not_found(split, folder, available))


def _not_found(split: str, folder: Path, available: Sequence[str]) -> str:
    if not folder.is_dir():
        contents = f"there is no folder {folder}"
    else:
        for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
            available = [
                *available,
                *(f"{subfolder} holds {name} (tree)" for name in _tree_folders(subfolder)),
            ]
        contents = "; ".join(available) or f"{folder} holds none of them"
    return (
        f"no {split} split of ImageNet: {contents}. Set data_dir or TFROBUST_DATA_DIR to a "
        "folder with one of (1) class folders: train/<wnid>/*.JPEG, val/<wnid>/*.JPEG; (2) the "
        "shards of TensorFlow's build_imagenet_data.py: train-00000-of-01024, "
        "validation-00000-of-00128; (3) what tensorflow-datasets prepared: "
        "imagenet2012/<version>, made by "
        'tfds.builder("imagenet2012", data_dir=...).download_and_prepare() from the two archives '
        "that image-net.org gives to registered users."
    )


Splits = dict[str, Callable[[], Source]]


def _trees(root: Path, classes: int) -> Splits:
    folders = _tree_folders(root)
    return {split: lambda path=path: _tree(path, classes) for split, path in folders.items()}


def _tree_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for name, split in (("train", "train"), ("val", "validation"), ("validation", "validation")):
        folder = root / name
        if not folder.is_dir() or not any(map(_holds_images, os.scandir(folder))):
            continue
        if split in folders:
            raise InputError(f"{root} holds both val and validation: remove or rename one")
        folders[split] = folder
    return folders


def _holds_images(entry: os.DirEntry) -> bool:
    return entry.is_dir() or Path(entry.name).suffix.lower() in SUFFIXES


def _tree(folder: Path, classes: int) -> Tree:
    wnids = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
    )
    if not wnids:
        raise InputError(
            f"{folder} holds images but no class folders: move each image into a folder named "
            "after its class's wnid"
        )
    if len(wnids) != classes:
        raise InputError(
            f"{folder} holds {len(wnids)} class folders ({wnids[0]} .. {wnids[-1]}), but "
            f"{classes} classes are expected: complete it, or give classes={len(wnids)}"
        )

    def list_images(wnid: str) -> list[tuple[str, int]]:
        return sorted(
            (f"{wnid}/{entry.name}", entry.stat().st_size)
            for entry in os.scandir(folder / wnid)
            if entry.is_file() and Path(entry.name).suffix.lower() in SUFFIXES
        )

    with ThreadPoolExecutor(THREADS) as pool:
        listed = list(pool.map(list_images, wnids))
    empty = [wnid for wnid, files in zip(wnids, listed, strict=True) if not files]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise InputError(
            f"no images in class folder {', '.join(empty[:5])}{more} of {folder}: fill or remove it"
        )
    return Tree(
        folder=folder,
        files=tuple(name for files in listed for name, _ in files),
        labels=np.repeat(np.arange(classes, dtype=np.int32), [len(files) for files in listed]),
        sha256=digest(file for files in listed for file in files),
    )


def _tfrecords(root: Path, classes: int) -> Splits:
    shards: dict[str, dict[int, Path]] = {}
    counts: dict[str, set[int]] = {}
    for entry in os.scandir(root):
        match = _SHARD.fullmatch(entry.name)
        if match:
            split, index, count = match[1], int(match[2]), int(match[3])
            shards.setdefault(split, {})[index] = Path(entry.path)
            counts.setdefault(split, set()).add(count)

    def shards_of(split: str) -> Source:
        if len(counts[split]) > 1:
            sets = " and ".join(f"-of-{count:05}" for count in sorted(counts[split]))
            raise InputError(f"{root} mixes {split} shards {sets}: keep one set of them")
        (count,) = counts[split]
        files = [
            shards[split].get(index, root / f"{split}-{index:05}-of-{count:05}")
            for index in range(count)
        ]
        location = f"build_imagenet_data shards in {root}"
        records = open_records(files, BUILD_IMAGENET_DATA, classes, location, "records")
        _check_sizes(records)
        return records

    return {split: lambda split=split: shards_of(split) for split in shards}


def _check_sizes(records: Records) -> None:
    """Shards of equal numbers of examples, but for the last ones, which may have fewer.

    Raises:
        InputError: a shard is empty that cannot be.
    """
    counts = records.counts
    # equal parts leave shards empty only at the end, and only where there are more shards than
    # examples in one
    filled = np.flatnonzero(counts)
    first, end = counts.max(), len(counts) if counts.max() > len(counts) else filled[-1]
    if not counts[:end].all():
        shard = records.files[int(np.argmin(counts[:end]))]
        raise InputError(f"{shard} is empty, others hold {first} examples: copy or write it again")
    short = np.flatnonzero(counts[: filled[-1]] < first - 2)
    if len(short):
        warnings.warn(
            ShortShardWarning(
                f"{records.files[short[0]]} holds {counts[short[0]]} examples, others {first}: "
                f"{len(short)} of {len(counts)} shards may not have been copied in full"
            ),
            stacklevel=2,
        )


def _tfds(root: Path, classes: int) -> Splits:
    prepared = (path.parent for path in root.glob("imagenet2012/*/dataset_info.json"))
    versions = [folder for folder in prepared if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    if not versions:
        return {}
    import tensorflow_datasets as tfds

    newest = max(versions, key=lambda folder: [int(part) for part in folder.name.split(".")])
    builder = tfds.builder_from_directory(newest)  # reads prepared data, cannot download

    def records_of(split: str) -> Source:
        info = builder.info
        if info.file_format != tfds.core.FileFormat.TFRECORD:
            raise InputError(
                f"{newest} is prepared as {info.file_format.value}; prepare it as tfrecord, "
                "tensorflow-datasets' default"
            )
        wnids = info.features["label"].names
        if len(wnids) != classes or wnids != sorted(wnids):
            raise InputError(
                f"{newest} has {len(wnids)} classes ({wnids[0]} .. {wnids[-1]}), but {classes}, "
                "sorted, are expected: prepare it again, or give the number of classes (classes=)"
            )
        files = [Path(path) for path in info.splits[split].filepaths]
        location = f"tensorflow-datasets imagenet2012 in {newest.parent.parent}"
        records = open_records(files, TFDS, classes, location, str(builder.version))
        known = info.splits[split].shard_lengths
        if len(known) == len(files) and (records.counts != known).any():
            shard = int(np.argmax(records.counts != known))
            raise InputError(
                f"{files[shard]} holds {records.counts[shard]} {split} examples, but the "
                f"dataset_info.json says {known[shard]}: copy or prepare it again"
            )
        if len(records) != info.splits[split].num_examples:
            raise InputError(
                f"{newest} holds {len(records)} {split} examples, but its dataset_info.json says "
                f"{info.splits[split].num_examples}: copy or prepare it again"
            )
        return records

    return {split: lambda split=split: records_of(split) for split in builder.info.splits}


_KINDS: dict[str, tuple[Callable[[Path, int], Splits], str]] = {
    "tree": (_trees, "imagenet"),
    "tfrecord": (_tfrecords, "imagenet"),
    "tfds": (_tfds, "tensorflow_datasets"),
}
