"""In a graph: the direction of increasing loss, and whether an example is misclassified."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrobust.classifier import gradients_at, softmax
from tfrobust.norms import flatten, norm, per_example

__all__ = [
    "AttackFunction",
    "all_finite",
    "label_lead",
    "loss_cotangent",
    "loss_direction",
    "misclassified",
    "rounding_of",
    "unit_direction",
]

# an attack prepared for one model: from images (batch, *input) and their classes (batch,) to
# candidates (batch, *input) and whether they are adversarial (batch,), optionally also forward and
# backward passes (batch,)
AttackFunction = Callable[[tf.Tensor, tf.Tensor], tuple[Any, ...]]


# rounding of a softmax near a tie, and of logits in single precision
ABSOLUTE_ROUNDING, RELATIVE_ROUNDING = 4e-7, 4e-6


def loss_direction(logits: keras.Model, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """A positive multiple of the cross-entropy's input gradient, (batch, *input).

    Zero only where the logits themselves do not depend on the input.
    """
    values, pull_back = gradients_at(logits, x)
    return pull_back(loss_cotangent(values, labels))


def loss_cotangent(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """A positive multiple of the cross-entropy's gradient with respect to logits (batch, classes).

    It does not underflow for examples that are classified with confidence.
    """
    # cross-entropy = softplus(logsumexp_{j != y} z_j - z_y): the gradient of the argument is
    # parallel to that of the loss
    is_label = tf.one_hot(labels, values.shape[1], dtype=values.dtype)
    others = softmax(tf.where(is_label > 0, values.dtype.min, values))
    return others - is_label


def unit_direction(gradient: tf.Tensor) -> tf.Tensor:
    """In a graph: each example's gradient divided by its l2 norm; zeros stay zeros. Same shape."""
    # scaled by its largest entry first: squares of huge or tiny gradients over- or underflow
    largest = per_example(norm(gradient, math.inf), gradient)
    scaled = tf.math.divide_no_nan(gradient, largest)
    return tf.math.divide_no_nan(scaled, per_example(norm(scaled), scaled))


def misclassified(
    values: tf.Tensor, labels: tf.Tensor, relative: float = RELATIVE_ROUNDING
) -> tf.Tensor:
    """Whether another logit exceeds the label's by more than rounding: (batch,) bool.

    A search that stops exactly at a tie returns images whose class depends on the batch size, or
    on how a softmax rounds the tie.

    Args:
        values: logits (batch, classes).
        labels: (batch,).
        relative: rounding of logits relative to the largest.
    """
    return -label_lead(values, labels) > rounding_of(values, relative)


def label_lead(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The label's logit minus the largest other one, (batch,) float32."""
    values = tf.cast(values, tf.float32)
    is_label = tf.one_hot(labels, values.shape[1], on_value=True, off_value=False)
    lowest = values.dtype.min
    others = tf.reduce_max(tf.where(is_label, lowest, values), axis=1)
    return tf.reduce_max(tf.where(is_label, values, lowest), axis=1) - others


def rounding_of(values: tf.Tensor, relative: float = RELATIVE_ROUNDING) -> tf.Tensor:
    """By how much a class must lead, so that rounding cannot decide: (batch,) float32."""
    largest = tf.reduce_max(tf.abs(tf.cast(values, tf.float32)), axis=1)
    return ABSOLUTE_ROUNDING + relative * largest


def all_finite(x: tf.Tensor) -> tf.Tensor:
    """Whether all values of an example are finite: (batch, ...) -> (batch,) bool."""
    return tf.reduce_all(tf.math.is_finite(flatten(x)), axis=1)
