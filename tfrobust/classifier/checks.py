"""Checks that a model's outputs are logits, and that its views compute what the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.inputs import model_input_shape
from tfrobust.classifier.keras_internals import all_layers
from tfrobust.errors import TfrobustError

__all__ = [
    "ADVICE",
    "NotLogitsError",
    "are_probabilities",
    "check_logits",
    "check_output_shape",
    "check_rows_apart",
    "check_view",
    "checked_rows",
    "computes_in_half",
    "has_fixed_shape",
    "hidden_softmax",
    "in_chunks",
    "other_batch",
    "probe_batch",
]

ADVICE = (
    "Give a model that returns logits, for instance one whose last layer is Dense(classes) "
    "without an activation, or that ends in a softmax layer, which is then left out."
)
# rows in one forward pass of a check, which has to fit where the caller's own batches may be small
_PROBE_ROWS = 8
# of all examples of a call, on which its views are compared with the model
_CHECKED_ROWS = 16
_HALF = ("float16", "bfloat16")


class NotLogitsError(TfrobustError, ValueError):
    """The model's output is not logits, and no logits could be found inside it."""


def check_output_shape(name: str, shape: tuple[int | None, ...]) -> None:
    if len(shape) != 2:
        raise NotLogitsError(f"{name} returns {shape}; logits have shape (batch, classes)")
    if shape[1] == 1:
        raise NotLogitsError(
            f"{name} has one output unit; one logit per class is needed, two for a binary problem"
        )


def has_fixed_shape(model: keras.Model) -> bool:
    shape = model_input_shape(model)
    return shape is not None and None not in shape


def computes_in_half(model: keras.Model) -> bool:
    """Whether any layer computes in half precision."""
    return any(layer.compute_dtype in _HALF for layer in all_layers(model))


def probe_batch(model: keras.Model, x: Any) -> tf.Tensor:
    """The first few rows of x, or random inputs of the shape that the model, or x, declares.

    Random also where all values of x are equal: zeros that tell no more than a shape.
    """
    if x is not None:
        rows = np.asarray(x, np.float32)[:_PROBE_ROWS]
        if rows.size and (rows != rows.flat[0]).any():
            return tf.constant(rows)
        shape = rows.shape[1:]
    elif has_fixed_shape(model):
        shape = model_input_shape(model)
    else:
        raise NotLogitsError(
            f"{model.name} declares no input shape; give a few inputs: logits_model(model, x)"
        )
    return tf.constant(np.random.default_rng(0).random((_PROBE_ROWS, *shape)), tf.float32)


def checked_rows(x: Any) -> np.ndarray:
    """At most 16 rows of the examples x, evenly spaced: data sets are often sorted by class."""
    count = min(len(x), _CHECKED_ROWS)
    return np.asarray(x)[np.linspace(0, len(x) - 1, count).astype(int)].astype(np.float32)


def in_chunks(function: Callable[[np.ndarray], Any], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """`function` of a few rows at a time: its results, joined, in double precision."""
    parts = [
        function(rows[start : start + _PROBE_ROWS]) for start in range(0, len(rows), _PROBE_ROWS)
    ]
    return tuple(
        np.concatenate([_double(part) for part in each]) for each in zip(*parts, strict=True)
    )


def other_batch(rows: np.ndarray) -> np.ndarray:
    """The first rows in a batch of another size: half as large, or a single row and zeros."""
    if len(rows) == 1:
        return np.concatenate([rows, np.zeros_like(rows)])
    return rows[: min(len(rows), _PROBE_ROWS) // 2]


def check_view(
    model: keras.Model, logits: Any, outputs: Any, *, stripped: bool, shared: bool = False
) -> None:
    """Refuse a view that does not compute what the model does.

    Args:
        logits: of the view, (batch, classes).
        outputs: of the model, for the same inputs.
        stripped: whether the view leaves out a softmax, so that its softmax is the model's output.
        shared: both are of one forward pass; of two each has rounding errors of its own.

    Rows whose logits are not finite are left out: their callers refuse these.
    """
    logits, outputs = _double(logits), _double(outputs)
    finite = np.isfinite(logits).all(axis=1)
    logits, outputs = logits[finite], outputs[finite]
    if not len(logits):
        return
    expected = _softmax(logits) if stripped else logits
    largest = np.abs(logits).max()
    rounding = 1e-5 if shared else _rounding_of_two_passes()
    rounding = 2e-2 if computes_in_half(model) else rounding
    tolerance = min(rounding + 1e-6 * largest, 2e-2) if stripped else rounding * largest
    error = np.abs(expected - outputs).max()
    if error <= tolerance:
        return
    if stripped:
        raise NotLogitsError(
            f"{model.name} ends in a layer with a softmax, but its outputs are not the softmax of "
            f"what that layer returns without it: they differ by {error:.2g}. " + ADVICE
        )
    raise NotLogitsError(
        f"{model.name} does not return what its layers compute: they differ by {error:.2g}. Its "
        "class changes what a Sequential or Functional model does; derive it from keras.Model and "
        "compute in `call`."
    )


def check_rows_apart(model: keras.Model, together: Any, alone: Any) -> None:
    """Refuse logits that depend on the other examples of a batch, or on chance.

    Args:
        together: logits of a batch, (batch, classes).
        alone: logits of `other_batch`, which begins with the same examples.
    """
    count = min(len(together), len(alone))
    together, alone = _double(together)[:count], _double(alone)[:count]
    finite = np.isfinite(together).all(axis=1) & np.isfinite(alone).all(axis=1)
    if not finite.any():
        return
    error = np.abs(together - alone)[finite].max()
    largest = np.abs(together)[finite].max()
    # matrix products of other sizes are rounded differently, on a GPU to 10 bits
    if error > (0.1 if computes_in_half(model) else 1e-2) * largest:
        raise NotLogitsError(
            f"the logits that {model.name} gives an example in inference mode depend on the other "
            f"examples in its batch, or on chance: two batches differ by {error:.2g}. Call its "
            "batch normalisation and dropout with `training` as the model is called, not with True."
        )


def check_logits(model: keras.Model, values: Any) -> None:
    """Refuse outputs that can only be probabilities or their logarithms."""
    half = str(values.dtype) in _HALF
    values = _double(values)
    check_output_shape(model.name, values.shape)
    if are_probabilities(values, half=half):
        raise hidden_softmax(model)
    if are_probabilities(np.exp(np.minimum(values, 1.0)), half=half):
        raise NotLogitsError(f"{model.name} returns log-probabilities. " + ADVICE)
    if (values >= 0).all() and (values <= 1).all() and values.std() > 0:
        raise NotLogitsError(
            f"every output of {model.name} lies between 0 and 1, as a sigmoid's do. " + ADVICE
        )


def are_probabilities(values: Any, *, half: bool = False) -> bool:
    """Whether rows could be probabilities, rounded to half precision or to single."""
    values = _double(values)
    close = np.allclose(values.sum(axis=1), 1, atol=2e-2 if half else 1e-4)
    return bool(close and (values >= 0).all())


def hidden_softmax(model: keras.Model) -> NotLogitsError:
    return NotLogitsError(
        f"{model.name} returns probabilities, and the softmax that makes them is no layer or "
        "operation at its end that could be left out. " + ADVICE
    )


def _rounding_of_two_passes() -> float:
    """Relative to the largest logit, in single precision or what a GPU computes it in."""
    short = tf.config.experimental.tensor_float_32_execution_enabled()
    return 5e-3 if short and tf.config.list_logical_devices("GPU") else 1e-4


def _double(values: Any) -> np.ndarray:
    """As float64: NumPy would add up half precision in half precision."""
    return np.asarray(values).astype(np.float64)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
