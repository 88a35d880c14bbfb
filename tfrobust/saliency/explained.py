"""What a saliency map explains: a function of the logits and one class per example."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import Classifier, as_images, as_labels, predict_logits, softmax
from tfrobust.errors import InputError

__all__ = ["Explained", "as_explained", "cotangent"]

Explained = Literal["logit", "loss", "log_odds"]


def as_explained(
    model: keras.Model, x: Any, classes: Any, of: Explained, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The validated arguments of a saliency map: x float32 (batch, *input), classes int32 (batch,).

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,); the predicted classes where None.
        of: the function of the logits.
        batch_size: examples per call, for the predictions.

    Raises:
        ValueError: x or classes are malformed, or `of` is unknown.
        NotLogitsError: the model has no logits to give.
    """
    if of not in get_args(Explained):
        raise InputError(f'of must be "logit", "loss" or "log_odds", got {of!r}')
    x = as_images(model, x)
    count = Classifier.of(model, x).classes
    if classes is None:
        classes = np.argmax(predict_logits(model, x, batch_size=batch_size), axis=1)
    return x, as_labels(classes, len(x), count, "classes")


def cotangent(of: Explained, values: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """In a graph: derivative of the explained function by the logits, (batch, classes).

    Args:
        of: "logit" z_y; "loss" logsumexp(z) - z_y; "log_odds" logsumexp_{j != y}(z_j) - z_y.
        values: logits (batch, classes).
        classes: (batch,), y.
    """
    one_hot = tf.one_hot(classes, values.shape[1], dtype=values.dtype)
    if of == "logit":
        return one_hot
    if of == "loss":
        return softmax(values) - one_hot
    return softmax(tf.where(one_hot > 0, values.dtype.min, values)) - one_hot
