"""TFRecord shards of images, indexed so that single examples can be read.

A TFRecord is its length (8 bytes), that length's checksum (4), the bytes, and their checksum (4).
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfrobust.data.imagenet.crc32c import masked_crc32c, masked_crc32c_of_rows
from tfrobust.data.images import CorruptImageError
from tfrobust.data.tabular import DataNotFoundError
from tfrobust.errors import InputError

__all__ = ["BUILD_IMAGENET_DATA", "TFDS", "Example", "Layout", "Records", "digest", "open_records"]

THREADS = 16  # for listing and indexing, which are bound by the latency of the file system
_HEADER, _FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class Example:
    """One image as stored."""

    encoded: bytes
    label: int
    """0 .. classes - 1, by the sorted wnids."""
    name: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of a record's features, and the label of the first class."""

    encoded: str
    label: str
    filename: str
    first_label: int


BUILD_IMAGENET_DATA = Layout("image/encoded", "image/class/label", "image/filename", 1)
TFDS = Layout("image", "label", "file_name", 0)


@dataclasses.dataclass(frozen=True)
class Records:
    """Indexed TFRecord shards of tf.train.Example.

    The checksums of lengths are compared when a shard is indexed, that of a record when it is read
    for the first time.
    """

    location: str
    version: str
    files: tuple[Path, ...]
    layout: Layout
    classes: int
    shards: np.ndarray
    offsets: np.ndarray
    """(examples,) position of the example's first byte in its file."""
    lengths: np.ndarray
    """(examples,) bytes."""
    sha256: str
    intact: np.ndarray
    """(examples,) bool: whose checksum has been compared."""

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def counts(self) -> np.ndarray:
        """(shards,) examples in each."""
        return np.diff(self.shards, append=len(self))

    def read(self, index: int) -> Example:
        """One example.

        Raises:
            CorruptImageError: the record differs from its checksum, does not parse, or lacks the
                image or the label.
            InputError: the label is out of range.
            OSError: the file cannot be read.
        """
        with self.files[self._shard(index)].open("rb", buffering=0) as file:
            file.seek(int(self.offsets[index]))
            record = file.read(int(self.lengths[index]))
            checksum = file.read(_FOOTER)
        if not self.intact[index]:
            if len(checksum) < _FOOTER or masked_crc32c(record) != _unpacked(checksum):
                raise CorruptImageError("the record differs from its checksum")
            self.intact[index] = True
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError as error:
            raise CorruptImageError("the record is not a tf.train.Example") from error
        layout = self.layout
        names = ", ".join(sorted(features)) or "nothing"
        encoded = features[layout.encoded].bytes_list.value
        labels = features[layout.label].int64_list.value
        if len(encoded) != 1 or len(labels) != 1:
            raise CorruptImageError(
                f"the record lacks {layout.encoded} or {layout.label}; it holds {names}"
            )
        label = labels[0] - layout.first_label
        if not 0 <= label < self.classes:
            first, last = layout.first_label, self.classes - 1 + layout.first_label
            raise InputError(
                f"{self._position(index)} has label {label + first}, but labels lie in "
                f"{first}..{last} in this layout: write the shards without a background class, "
                "or give the number of classes (classes=)"
            )
        name = b"".join(features[layout.filename].bytes_list.value[:1]).decode(errors="replace")
        return Example(encoded[0], label, name or self._position(index))

    def name(self, index: int) -> str:
        """Shard, record number and, where it can be read, file name."""
        position = self._position(index)
        try:
            name = self.read(index).name
        except (ValueError, OSError):
            return position
        return position if name == position else f"{position} ({name})"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.shards, index, side="right")) - 1

    def _position(self, index: int) -> str:
        shard = self._shard(index)
        return f"{self.files[shard].name}, record {index - int(self.shards[shard])}"


def open_records(
    files: Sequence[Path], layout: Layout, classes: int, location: str, version: str
) -> Records:
    """Index shards by the headers of their records.

    Args:
        files: the shards, in order.
        layout: of each record.
        classes: number of classes, for the range of labels.
        location, version: for provenance.

    Raises:
        DataNotFoundError: shards are missing, or hold no example.
        InputError: a shard is truncated, damaged or not a TFRecord file, or the first record has
            another layout.
    """
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataNotFoundError(
            f"{len(missing)} of {len(files)} shards are missing in {files[0].parent}: "
            f"{', '.join(missing[:3])}{more}. Copy or write them again."
        )
    with ThreadPoolExecutor(THREADS) as pool:
        indices = list(pool.map(_index, files))
    counts = [len(offsets) for offsets, _ in indices]
    if not sum(counts):
        raise DataNotFoundError(f"{location}: the {len(files)} shards hold no example")
    records = Records(
        location=location,
        version=version,
        files=tuple(files),
        layout=layout,
        classes=classes,
        shards=np.cumsum([0, *counts[:-1]]),
        offsets=np.concatenate([offsets for offsets, _ in indices]),
        lengths=np.concatenate([lengths for _, lengths in indices]),
        sha256=digest((file.name, file.stat().st_size) for file in files),
        intact=np.zeros(sum(counts), bool),
    )
    try:
        records.read(0)  # fail now for another layout, not in the middle of an epoch
    except CorruptImageError as error:
        raise InputError(
            f"{records.name(0)} in {files[0].parent} has another layout than {location}: {error}"
        ) from error
    return records


def _index(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and lengths of a shard's records; reads only their headers."""
    offsets, lengths, headers = [], [], bytearray()
    size, start = file.stat().st_size, 0
    with file.open("rb", buffering=0) as shard:
        while start < size:
            shard.seek(start)
            header = shard.read(_HEADER)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
            headers += header
            offsets.append(start + _HEADER)
            lengths.append(length)
            start += _HEADER + length + _FOOTER
            if start > size:
                raise InputError(
                    f"{file} is truncated in record {len(offsets) - 1}, or is not an uncompressed "
                    "TFRecord file: copy or write it again"
                )
    rows = np.frombuffer(headers, np.uint8).reshape(-1, _HEADER)
    differing = masked_crc32c_of_rows(rows[:, :8]) != rows[:, 8:].copy().view("<u4")[:, 0]
    if differing.any():
        raise InputError(
            f"{file} is damaged in the header of record {int(np.argmax(differing))}, or is not an "
            "uncompressed TFRecord file: copy or write it again"
        )
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def _unpacked(checksum: bytes) -> int:
    return struct.unpack("<I", checksum)[0]


def digest(files: Iterable[tuple[str, int]]) -> str:
    """sha256 of names and sizes."""
    result = hashlib.sha256()
    for name, size in files:
        result.update(f"{name}\t{size}\n".encode())
    return result.hexdigest()
