"""In a graph: the direction of increasing loss, and whether an example is misclassified."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tfrobust.classifier import gradients_at
from tfrobust.norms import flatten

__all__ = ["AttackFunction", "all_finite", "loss_direction", "misclassified"]

# an attack prepared for one model: from images (batch, *input) and their classes (batch,) to
# candidates (batch, *input) and whether they are adversarial (batch,)
AttackFunction = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


# rounding of a softmax near a tie, and of logits in single precision
ABSOLUTE_ROUNDING, RELATIVE_ROUNDING = 4e-7, 4e-6


def loss_direction(logits: keras.Model, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """A positive multiple of the cross-entropy's input gradient, (batch, *input).

    Zero only where the logits themselves do not depend on the input.
    """
    # cross-entropy = softplus(logsumexp_{j != y} z_j - z_y): the gradient of the argument is
    # parallel to that of the loss and does not underflow for confidently classified examples
    values, pull_back = gradients_at(logits, x)
    is_label = tf.one_hot(labels, values.shape[1], dtype=values.dtype)
    others = tf.nn.softmax(tf.where(is_label > 0, values.dtype.min, values))
    return pull_back(others - is_label)


def misclassified(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Whether another logit exceeds the label's by more than rounding: (batch,) bool.

    A search that stops exactly at a tie returns images whose class depends on the batch size, or
    on how a softmax rounds the tie.
    """
    values = tf.cast(values, tf.float32)
    is_label = tf.one_hot(labels, values.shape[1], on_value=True, off_value=False)
    lowest = values.dtype.min
    others = tf.reduce_max(tf.where(is_label, lowest, values), axis=1)
    lead = others - tf.reduce_max(tf.where(is_label, values, lowest), axis=1)
    return lead > ABSOLUTE_ROUNDING + RELATIVE_ROUNDING * tf.reduce_max(tf.abs(values), axis=1)


def all_finite(x: tf.Tensor) -> tf.Tensor:
    """Whether all values of an example are finite: (batch, ...) -> (batch,) bool."""
    return tf.reduce_all(tf.math.is_finite(flatten(x)), axis=1)
