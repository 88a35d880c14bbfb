"""Data sets in memory, with their value range and provenance."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from tfrobust.errors import InputError

__all__ = ["Dataset", "Provenance", "dataset"]


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


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
