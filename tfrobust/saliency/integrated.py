"""Integrated gradients: the gradient averaged along the straight line from a baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count
from tfrobust.classifier import Classifier, gradients_at, in_batches
from tfrobust.errors import InputError
from tfrobust.saliency.explained import Explained, as_explained, cotangent

__all__ = ["integrated_gradients"]


def integrated_gradients(
    model: keras.Model,
    x: Any,
    classes: Any = None,
    *,
    baseline: Any = 0.0,
    steps: int = 50,
    of: Explained = "logit",
    batch_size: int = 100,
) -> np.ndarray:
    """(x - b) * integral over t in [0, 1] of the gradient at b + t (x - b).

    The integral is taken by the midpoint rule, t = (k + 1/2) / steps. A map sums to f(x) - f(b) up
    to the rule's error, where f is the explained function (completeness): exactly where f is linear
    along the line, as for a linear model, or a network without biases, ReLU activations and b = 0.

    Source: Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017, eq. (1), (3).

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,); the predicted classes of x where None.
        baseline: b, in the units of the input: a number, an array that broadcasts to one example,
            or one example per row, (batch, *input).
        steps: gradients per example.
        of: as in `gradient`. For "loss" and "log_odds" f is the cross-entropy and the log-odds
            against the class.
        batch_size: examples per call.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x, classes or the baseline are malformed, steps is less than 1, or `of` is
            unknown.
        NotLogitsError: the model has no logits to give.
    """
    x, classes = as_explained(model, x, classes, of, batch_size)
    start = _as_baseline(baseline, x.shape)
    count = tf.constant(as_count("steps", steps, 1))
    integrated = Classifier.of(model, x).compiled(_integrated_gradients, of)

    def run(rows: tf.Tensor, starts: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return integrated(rows, starts, labels, count)

    description = f"integrated gradients of {of}"
    return in_batches(run, x, start, classes, batch_size=batch_size, description=description)


def _integrated_gradients(logits: keras.Model, of: Explained) -> Callable[..., tf.Tensor]:
    """Build: the map of a batch; one compiled loop for every number of steps."""

    def run(x: tf.Tensor, start: tf.Tensor, classes: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        difference = x - start

        def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            t = (tf.cast(k, x.dtype) + 0.5) / tf.cast(steps, x.dtype)
            values, pull_back = gradients_at(logits, start + t * difference)
            return k + 1, total + pull_back(cotangent(of, values, classes))

        first = tf.constant(0), tf.zeros_like(x)
        _, total = tf.while_loop(lambda k, total: k < steps, add, first)
        return difference * total / tf.cast(steps, x.dtype)

    return run


def _as_baseline(baseline: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The baseline as float32, broadcast to (batch, *input) without a copy."""
    start = np.asarray(baseline)
    if start.dtype.kind not in "fiub":
        raise InputError(f"baseline must be numbers, got {start.dtype}")
    start = start.astype(np.float32, copy=False)
    if not np.isfinite(start).all():
        raise InputError("baseline holds NaN or infinite values")
    fits = start.ndim < len(shape) or len(start) == shape[0]
    try:
        start = np.broadcast_to(start, shape)
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"baseline must be a number, one example {shape[1:]}, or one per example {shape}, got "
            f"shape {np.shape(baseline)}"
        )
    return start
