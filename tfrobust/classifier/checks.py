"""Checks that a model's outputs are logits."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.inputs import model_input_shape
from tfrobust.errors import TfrobustError

__all__ = [
    "ADVICE",
    "NotLogitsError",
    "are_probabilities",
    "check_logits",
    "check_output_shape",
    "check_softmax",
    "has_fixed_shape",
    "hidden_softmax",
    "probe_batch",
]

ADVICE = (
    "Give a model that returns logits, for instance one whose last layer is Dense(classes) "
    "without an activation, or that ends in a softmax layer, which is then left out."
)
_PROBE_ROWS = 8
# absolute error of a softmax in half precision; 1e-5 in single
_ROUNDING = {"float16": 2e-2, "bfloat16": 2e-2}


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


def probe_batch(model: keras.Model, x: Any) -> tf.Tensor:
    """The first few rows of x, or random inputs of the shape that the model declares."""
    if x is not None:
        return tf.constant(np.asarray(x)[:_PROBE_ROWS], tf.float32)
    if not has_fixed_shape(model):
        raise NotLogitsError(
            f"{model.name} declares no input shape; give a few inputs: logits_model(model, x)"
        )
    shape = (_PROBE_ROWS, *model_input_shape(model))
    return tf.constant(np.random.default_rng(0).random(shape), tf.float32)


def check_softmax(model: keras.Model, logits: Any, outputs: Any) -> None:
    """Refuse a view whose softmax is not the model's output."""
    outputs = tf.convert_to_tensor(outputs)
    tolerance = _ROUNDING.get(outputs.dtype.name, 1e-5)
    recomputed = np.asarray(tf.nn.softmax(tf.cast(logits, tf.float64)))
    error = np.abs(recomputed - np.asarray(tf.cast(outputs, tf.float64))).max()
    if not error <= tolerance and np.isfinite(recomputed).all():
        raise NotLogitsError(
            f"{model.name} ends in a layer with a softmax, but its outputs are not the softmax of "
            f"what that layer returns without it: they differ by {error:.2g}. " + ADVICE
        )


def check_logits(model: keras.Model, values: np.ndarray) -> None:
    """Refuse outputs that can only be probabilities or their logarithms."""
    check_output_shape(model.name, values.shape)
    if are_probabilities(values):
        raise hidden_softmax(model)
    if are_probabilities(np.exp(np.minimum(values, 1.0))):
        raise NotLogitsError(f"{model.name} returns log-probabilities. " + ADVICE)
    if (values >= 0).all() and (values <= 1).all() and values.std() > 0:
        raise NotLogitsError(
            f"every output of {model.name} lies between 0 and 1, as a sigmoid's do. " + ADVICE
        )


def are_probabilities(values: np.ndarray) -> bool:
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-4))


def hidden_softmax(model: keras.Model) -> NotLogitsError:
    return NotLogitsError(
        f"{model.name} returns probabilities, and the softmax that makes them is no layer or "
        "operation at its end that could be left out. " + ADVICE
    )
