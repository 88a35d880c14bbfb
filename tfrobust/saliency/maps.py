"""Saliency maps from one gradient with respect to the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import (
    Classifier,
    as_images,
    as_labels,
    class_gradients,
    gradients_at,
    in_batches,
    predict_logits,
)
from tfrobust.errors import InputError

__all__ = ["gradient", "input_gradient"]


def gradient(
    model: keras.Model,
    x: Any,
    classes: Any = None,
    *,
    of: Literal["logit", "loss"] = "logit",
    batch_size: int = 100,
) -> np.ndarray:
    """Gradient of each example's logit, or of its cross-entropy, with respect to the example.

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,), the class that each example is explained for; the predicted classes
            where None.
        of: "logit", the saliency map of Etmann 2019, or "loss", the cross-entropy's gradient.
        batch_size: examples per call.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x or classes are malformed, or `of` is unknown.
        NotLogitsError: the model has no logits to give.
    """
    if of not in ("logit", "loss"):
        raise InputError(f'of must be "logit" or "loss", got {of!r}')
    x = as_images(model, x)
    classifier = Classifier.of(model, x)
    if classes is None:
        classes = np.argmax(predict_logits(model, x, batch_size=batch_size), axis=1)
    classes = as_labels(classes, len(x), classifier.classes, "classes")
    run = classifier.compiled(_gradient, of)
    return in_batches(run, x, classes, batch_size=batch_size, description=f"gradient of {of}")


# its name at the top level of the package
input_gradient = gradient


def _gradient(logits: keras.Model, of: str) -> Callable[..., tf.Tensor]:
    def run(x: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        values, pull_back = gradients_at(logits, x)
        if of == "logit":
            return class_gradients(pull_back, values, classes)
        # d/dz (logsumexp(z) - z_y) = softmax(z) - e_y
        one_hot = tf.one_hot(classes, values.shape[1], dtype=values.dtype)
        return pull_back(tf.nn.softmax(values) - one_hot)

    return run
