"""Data sets in memory, with their value range and provenance."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tfrobust.arguments import as_range
from tfrobust.errors import InputError

__all__ = ["Dataset", "Provenance", "dataset", "joined"]

# rows that `rescaled` holds in double precision at a time
_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Origin of a split, recorded with the results."""

    name: str
    split: str
    source: str
    version: str
    processing: str
    examples: int
    sha256: str
    """Of the bytes of images (or features) and labels."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split in memory."""

    images: np.ndarray
    """(count, height, width, channels) float32 in `value_range`; for a table its features,
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

    def rescaled(self, low: float, high: float) -> Dataset:
        """The same examples with `value_range` mapped affinely to (low, high).

        The range's end points are mapped exactly, and rounding keeps every value inside the new
        range. A table's features are mapped alike: the range is one for all of them.

        Args:
            low: the new smallest value, rounded to float32.
            high: the new largest value, likewise.

        Returns:
            a data set of the new range, whose provenance adds both ranges to `processing` and has
            the digest of the new values.

        Raises:
            InputError: `low` and `high` are not finite, or `low` is not less than `high` in
                float32; or a value lies outside `value_range` or is not finite.

        Source: Kim 2019, appendix A.1, which takes all data in [-1, 1].
        """
        old_low, old_high = as_range(self.value_range)
        new_low, new_high = as_range((low, high))
        images = np.empty(self.images.shape, np.float32)
        for start in range(0, len(self), _ROWS):
            rows, new = self.images[start : start + _ROWS], images[start : start + _ROWS]
            if not (old_low <= rows.min() and rows.max() <= old_high):
                raise InputError(
                    f"{self.provenance.name} holds values from {rows.min():g} to {rows.max():g}, "
                    f"outside its value_range ({old_low:g}, {old_high:g}): correct the range or "
                    "the values before rescaling"
                )
            fraction = (rows.astype(np.float64) - old_low) / (old_high - old_low)
            new[...] = new_low + fraction * (new_high - new_low)
            # the sum at the upper end is rounded
            np.minimum(new, new_high, out=new)
            new[rows == old_high] = new_high
        provenance = dataclasses.replace(
            self.provenance,
            processing=f"{self.provenance.processing}; rescaled from ({old_low:.9g}, "
            f"{old_high:.9g}) to ({new_low:.9g}, {new_high:.9g})",
            sha256=_digest(images, self.labels),
        )
        return dataclasses.replace(
            self, images=images, value_range=(new_low, new_high), provenance=provenance
        )


def dataset(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int = 10,
    value_range: tuple[float, float] = (0.0, 1.0),
    **provenance: str,
) -> Dataset:
    """A data set of images and labels of any type.

    Args:
        images: (count, ...), converted to float32.
        labels: (count,), converted to int32.
        classes: number of classes.
        value_range: least and largest value of the images.
        provenance: the text fields of `Provenance`.
    """
    images = np.ascontiguousarray(images, np.float32)
    labels = np.ascontiguousarray(labels, np.int32)
    return Dataset(
        images=images,
        labels=labels,
        classes=classes,
        value_range=value_range,
        provenance=Provenance(**provenance, examples=len(images), sha256=_digest(images, labels)),
    )


def joined(parts: Sequence[Dataset]) -> Dataset:
    """The examples of several splits of one data set, in order.

    Raises:
        InputError: no parts, or parts of different data sets, shapes, classes or value ranges.
    """
    if not parts:
        raise InputError("give at least one data set to join")
    first = parts[0]
    for part in parts:
        if (
            part.provenance.name != first.provenance.name
            or part.images.shape[1:] != first.images.shape[1:]
            or (part.classes, part.value_range) != (first.classes, first.value_range)
        ):
            raise InputError(
                f"{first.provenance.name} {first.provenance.split} and {part.provenance.name} "
                f"{part.provenance.split} cannot be joined: they differ in shape, classes or range"
            )
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    provenance = dataclasses.replace(
        first.provenance,
        split=" + ".join(part.provenance.split for part in parts),
        source="; ".join(dict.fromkeys(part.provenance.source for part in parts)),
        examples=len(images),
        sha256=_digest(images, labels),
    )
    return dataclasses.replace(first, images=images, labels=labels, provenance=provenance)


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
