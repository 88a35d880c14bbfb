"""Image files decoded to RGB; those that cannot be are named, counted, skipped up to a limit."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.data.crops import centre_crop, check_crop
from tfrobust.errors import (
    CorruptImageWarning,
    InputError,
    MissingFileError,
    TfrobustError,
)

__all__ = [
    "CorruptImageError",
    "CorruptImageLog",
    "TooManyCorruptImagesError",
    "decode",
    "image_files",
    "read_images",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"})
_CHUNK = 64  # files decoded before the next are opened
_NAMED = 5

T = TypeVar("T")


class CorruptImageError(TfrobustError, ValueError):
    """An encoded image is truncated, or its format is not supported."""


class TooManyCorruptImagesError(TfrobustError, RuntimeError):
    """More images are corrupt than the limit allows; the message names the first few."""


def decode(encoded: bytes) -> np.ndarray:
    """The pixels of an encoded image.

    The format is detected from the bytes, not from the file name: JPEG (also greyscale and CMYK),
    PNG (16 bits are reduced to 8, transparency is dropped), the first frame of a GIF, BMP or WebP.
    An orientation in the metadata is not applied. JPEG has no checksums: where its compressed data
    are damaged in the middle, other pixels are returned.

    The inverse DCT is TensorFlow's default, fast one, as in Etmann's released code; it differs from
    the exact one of Pillow and Keras by about one grey level.

    Args:
        encoded: content of the file.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        CorruptImageError: truncated, or the format is not supported.
    """
    try:
        with tf.device("/CPU:0"):
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        reason = re.sub(r"\{\{.*?\}\} *| *\[Op:.*?\]", "", error.message).rstrip(" .")
        raise CorruptImageError(reason) from error
    return pixels.numpy()


class CorruptImageLog:
    """The corrupt images skipped so far; more than allowed are an error.

    Args:
        max_corrupt: distinct images that may be skipped.

    Raises:
        InputError: `max_corrupt` is negative.
    """

    def __init__(self, max_corrupt: int):
        if max_corrupt < 0:
            raise InputError(f"max_corrupt must be at least 0, got {max_corrupt}")
        self.max_corrupt = max_corrupt
        self._corrupt: dict[int, str] = {}
        self._failure: Exception | None = None
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images skipped so far, by index."""
        with self._lock:
            return tuple(name for _, name in sorted(self._corrupt.items()))

    def attempt(self, index: int, name: Callable[[], str], read: Callable[[], T]) -> T | None:
        """What `read` returns, or None where image `index` is corrupt.

        Raises:
            TooManyCorruptImagesError: more images are corrupt than may be skipped.
        """
        if index in self._corrupt:
            return None
        try:
            return read()
        except CorruptImageError as error:
            self._skip(index, name(), str(error))
            return None

    def _skip(self, index: int, name: str, reason: str) -> None:
        with self._lock:
            if index in self._corrupt:
                return
            self._corrupt[index] = name
            count = len(self._corrupt)
        if count > self.max_corrupt:
            raise TooManyCorruptImagesError(
                f"too many corrupt images, {count} with max_corrupt={self.max_corrupt}: "
                f"{_first_names(self.names)}. The last one: {reason}. "
                "Replace or remove them, or raise max_corrupt."
            )
        warnings.warn(CorruptImageWarning(name, reason, count, self.max_corrupt), stacklevel=2)

    def recording(self, function: Callable[..., T]) -> Callable[..., T]:
        """`function` with its exceptions recorded for `errors`: TensorFlow replaces them."""

        def recorded(*arguments):
            try:
                return function(*arguments)
            except Exception as error:
                self._failure = self._failure or error
                raise

        return recorded

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """In the block, replace TensorFlow's exception by the recorded one that caused it."""
        try:
            yield
        except tf.errors.OpError as error:
            # it may have been recorded before the block, as batches are read ahead
            failure = self._failure
            if failure is None or type(failure).__name__ not in error.message:
                raise
            self._failure = None
            raise failure from None


def read_images(
    images: str | Path | Sequence[str | Path],
    *,
    size: tuple[int, int],
    validation_side: int | None = None,
    limit: int | None = None,
    max_corrupt: int = 10,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Centre crops of image files, to measure any model on any images.

    Args:
        images: a folder, searched recursively in sorted order, or files.
        size: height and width of the crops.
        validation_side: length that the shorter side is scaled to; default: the crop's longer
            side, which keeps most of the image.
        limit: stop after this many images.
        max_corrupt: corrupt files that may be skipped, each with a warning.

    Returns:
        (count, *size, 3) float32, RGB in 0..255, and the file names, relative to the folder.

    Raises:
        FileNotFoundError: no such folder or file, or no image in the folder.
        TooManyCorruptImagesError: too many corrupt files, or no intact one.
        ValueError: the crop does not fit, or `limit` or `max_corrupt` is out of range.
    """
    side = max(size) if validation_side is None else validation_side
    check_crop(size, side)
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    log = CorruptImageLog(max_corrupt)
    files = image_files(images)
    count = len(files) if limit is None else min(limit, len(files))

    def crop(index: int) -> np.ndarray | None:
        path, name = files[index]
        pixels = log.attempt(index, lambda: name, lambda: decode(path.read_bytes()))
        if pixels is None:
            return None
        with tf.device("/CPU:0"):
            return centre_crop(pixels, size, side).numpy()

    crops, names = [], []
    bar = tqdm(total=count, desc="images", unit="image", delay=2, leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        start = 0
        while len(crops) < count and start < len(files):
            chunk = range(start, min(start + min(_CHUNK, count - len(crops)), len(files)))
            start = chunk.stop
            for index, pixels in zip(chunk, pool.map(crop, chunk), strict=True):
                if pixels is not None:
                    crops.append(pixels)
                    names.append(files[index][1])
            bar.update(len(crops) - bar.n)
    if not crops:
        raise TooManyCorruptImagesError(f"every image is corrupt: {_first_names(log.names)}")
    return np.stack(crops), tuple(names)


def image_files(images: str | Path | Sequence[str | Path]) -> list[tuple[Path, str]]:
    """Paths of image files and their names, relative to the folder, in sorted order.

    Raises:
        MissingFileError: no such folder or file, or no image in the folder.
    """
    if not isinstance(images, (str, Path)):
        files = [(Path(path), str(path)) for path in images]
        missing = [name for path, name in files if not path.is_file()]
        if missing:
            raise MissingFileError(f"no such image file: {_first_names(missing)}")
        if not files:
            raise MissingFileError("an empty list of image files: give at least one")
        return files
    folder = Path(images)
    if folder.is_file():
        return [(folder, folder.name)]
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}")
    candidates = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(
        (path.relative_to(folder).as_posix(), path) for path in candidates if path.is_file()
    )
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise MissingFileError(f"no image ({kinds}) in {folder} or the folders in it")
    return [(path, name) for name, path in files]


def _first_names(names: Sequence[str]) -> str:
    remaining = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {remaining} more" if remaining > 0 else "")
