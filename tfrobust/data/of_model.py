"""The data of `fit`, `evaluate` and others as a stream, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfrobust.classifier import as_images, as_labels, classes_of, model_input_shape
from tfrobust.data.arrays import Dataset
from tfrobust.data.stream import Arrays, Stream
from tfrobust.errors import InputError

__all__ = ["Data", "as_stream"]

Data = tuple[Any, Any] | tuple[Any, Any, Any] | Mapping[str, Any] | Stream | Dataset


def as_stream(model: keras.Model, data: Data, name: str) -> Stream:
    """Data, checked against a model, as a stream.

    Args:
        model: any Keras classifier.
        data: images and labels; images, labels and "targets"; a dict of named tensors with
            "images" and "labels" among them; a `Stream` or a `Dataset`.
        name: of the argument, for messages.

    Raises:
        ValueError: malformed data, or images or classes that the model does not have.
    """
    if isinstance(data, Stream):
        _check_stream(model, data, name)
        return data
    if isinstance(data, Dataset):
        data = data.arrays
    if not isinstance(data, Mapping):
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise InputError(
                f"{name} must be a pair, images and labels, a triple with target maps, a dict of "
                "named tensors, a Stream or a Dataset"
            )
        data = dict(zip(("images", "labels", "targets"), data, strict=False))
    missing = [key for key in ("images", "labels") if key not in data]
    if missing:
        raise InputError(f"{name} must have images and labels, got {', '.join(map(str, data))}")
    images = as_images(model, data["images"], f"{name} images")
    classes = classes_of(model, images[:1])
    labels = as_labels(data["labels"], len(images), classes, f"{name} labels")
    return Arrays({**data, "images": images, "labels": labels}, classes)


def _check_stream(model: keras.Model, stream: Stream, name: str) -> None:
    expected = model_input_shape(model)
    pairs = zip(expected or (), stream.input_shape, strict=False)
    if expected is not None and (
        len(expected) != len(stream.input_shape)
        or any(size is not None and size != actual for size, actual in pairs)
    ):
        raise InputError(f"{name} has images {stream.input_shape}, but the model takes {expected}")
    classes = classes_of(model, np.zeros((1, *stream.input_shape), np.float32))
    if stream.classes > classes:
        raise InputError(f"{name} has {stream.classes} classes, the model {classes}")
