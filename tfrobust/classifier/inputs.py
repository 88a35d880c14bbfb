"""Inputs of the public functions: validated arrays, and loops over batches with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust.distribution import gather_rows, is_chief, worker_count, worker_index
from tfrobust.errors import InputError, InputTypeError

__all__ = ["as_images", "as_labels", "in_batches", "model_input_shape"]


def model_input_shape(model: Any) -> tuple[int | None, ...] | None:
    """Shape of one example as the model declares it, or None where it declares none."""
    try:
        shape = model.input_shape
    except (AttributeError, ValueError):
        return None
    if not isinstance(shape, tuple) or not shape or isinstance(shape[0], tuple):
        return None
    return tuple(shape[1:])


def as_images(model: Any, x: Any, name: str = "x") -> np.ndarray:
    """`x` as a float32 array (batch, ...) that the model can take.

    Raises:
        ValueError: the batch is empty, has the wrong shape, or holds NaN or infinite values.
        TypeError: the values are not numbers.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise InputTypeError(f"{name} must hold numbers, got an array of {x.dtype}")
    x = x.astype(np.float32, copy=False)
    expected = model_input_shape(model)
    if expected is not None:
        shape = x.shape[1:]
        fits = len(shape) == len(expected) and all(
            size is None or size == actual for size, actual in zip(expected, shape, strict=True)
        )
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in expected)
            hint = " One image is a batch of one: x[None]." if x.shape == tuple(expected) else ""
            raise InputError(
                f"{name} has shape {x.shape}, but the model takes (batch, {sizes}).{hint}"
            )
    elif x.ndim < 2:
        raise InputError(f"{name} must be a batch, (batch, ...), got shape {x.shape}")
    if len(x) == 0:
        raise InputError(f"{name} is an empty batch: give at least one example")
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        not_finite = np.flatnonzero(~finite)
        raise InputError(
            f"{name} holds NaN or infinite values in {len(not_finite)} of {len(x)} examples, "
            f"first in example {not_finite[0]}"
        )
    return x


def as_labels(labels: Any, count: int, classes: int, name: str = "labels") -> np.ndarray:
    """`labels` as an int32 array (count,) of classes 0 .. classes - 1.

    Raises:
        ValueError: wrong shape (one-hot labels among them), not whole, or out of range.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,):
        hint = " Give class indices, not one-hot rows." if labels.ndim == 2 else ""
        raise InputError(f"{name} must have shape ({count},), got {labels.shape}.{hint}")
    numbers = labels.dtype.kind in "iubf"
    if not numbers or not (np.isfinite(labels) & (labels == np.floor(labels))).all():
        raise InputError(f"{name} must be whole numbers, got {labels.dtype}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(
            f"{name} must lie in 0..{classes - 1} for {classes} classes, but {len(wrong)} do not: "
            f"the first is {labels[wrong[0]]}, at position {wrong[0]}"
        )
    return labels.astype(np.int32)


def in_batches(
    function: Callable[..., Any],
    *arrays: np.ndarray,
    batch_size: int,
    description: str | None = None,
) -> Any:
    """Apply `function` to slices of `arrays` and join the results along the first axis.

    Under a `tf.distribute` strategy of several workers each processes an equal part of the rows;
    all workers get all results.

    Args:
        function: takes one tensor per array, returns a tensor or a nested structure of tensors.
        arrays: equally long, (count, ...).
        batch_size: rows per call; bounds the device memory.
        description: label of the progress bar, which appears after two seconds.

    Returns:
        the structure that `function` returns, of NumPy arrays with `count` rows.

    Raises:
        ValueError: `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    count = len(arrays[0])
    if worker_count() > 1:  # equal parts, padded with the first rows
        rows_per_worker = -(-count // worker_count())
        indices = (
            np.arange(worker_index() * rows_per_worker, (worker_index() + 1) * rows_per_worker)
            % count
        )
        arrays = tuple(array[indices] for array in arrays)
    total = len(arrays[0])
    results = []
    with tqdm(
        total=total,
        desc=description,
        unit="image",
        delay=2,
        leave=False,
        disable=None if is_chief() else True,
    ) as bar:
        for start in range(0, total, batch_size):
            rows = [tf.constant(array[start : start + batch_size]) for array in arrays]
            result = tf.nest.map_structure(np.asarray, function(*rows))
            results.append(result)
            bar.update(len(rows[0]))
    joined = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *results)
    if worker_count() == 1:
        return joined
    return tf.nest.map_structure(lambda rows: gather_rows(rows)[:count], joined)
