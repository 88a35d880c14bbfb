"""Saliency maps from one gradient with respect to the input, and a random one."""

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

__all__ = ["gradient", "gradient_times_input", "input_gradient", "random_map"]


def gradient(
    model: keras.Model,
    x: Any,
    classes: Any = None,
    *,
    of: Explained = "logit",
    batch_size: int = 100,
) -> np.ndarray:
    """Gradient of a function of each example's logits with respect to the example.

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,), the class y that each example is explained for; the predicted classes
            where None.
        of: "logit", the saliency map of Etmann 2019; "loss", the cross-entropy's gradient (g_G of
            Kim 2019, section 3.2), from softmax(z) - onehot(y) in single precision: above a
            confidence of about 1 - 3e-8 the class's own part rounds to zero, near 1 - 1e-38 all of
            it; "log_odds", the gradient of the log-odds against the class, log((1 - p_y) / p_y):
            the cross-entropy's divided by 1 - p_y, the same direction, which does not underflow.
        batch_size: examples per call.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x or classes are malformed, or `of` is unknown.
        NotLogitsError: the model has no logits to give.
    """
    x, classes = as_explained(model, x, classes, of, batch_size)
    run = Classifier.of(model, x).compiled(_gradient, of)
    return in_batches(run, x, classes, batch_size=batch_size, description=f"gradient of {of}")


# its name at the top level of the package
input_gradient = gradient


def gradient_times_input(
    model: keras.Model,
    x: Any,
    classes: Any = None,
    *,
    of: Explained = "logit",
    batch_size: int = 100,
) -> np.ndarray:
    """The gradient multiplied elementwise by the input (Shrikumar et al. 2017).

    g_GX of Kim 2019, section 3.2, with of="loss". It depends on where the pixels have their zero:
    Kim's images lie in [-1, 1].

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,); the predicted classes where None.
        of: as in `gradient`.
        batch_size: examples per call.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x or classes are malformed, or `of` is unknown.
        NotLogitsError: the model has no logits to give.
    """
    x, classes = as_explained(model, x, classes, of, batch_size)
    run = Classifier.of(model, x).compiled(_gradient_times_input, of)
    description = f"gradient of {of} times input"
    return in_batches(run, x, classes, batch_size=batch_size, description=description)


def random_map(x: Any, *, seed: int) -> np.ndarray:
    """A map that ranks pixels at random: independent and uniform in [0, 1).

    The baseline of an attribution method (g_Rand of Kim 2019, section 3.2).

    Args:
        x: (batch, *input); only its shape is used.
        seed: of the numbers, at least 0.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x is no batch, or the seed is negative.
    """
    shape = np.shape(x)
    if len(shape) < 2:
        raise InputError(f"x must be a batch, (batch, ...), got shape {shape}")
    rng = np.random.default_rng(as_count("seed", seed, 0))
    return rng.random(shape, np.float32)


def _gradient(logits: keras.Model, of: Explained) -> Callable[..., tf.Tensor]:
    def run(x: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        values, pull_back = gradients_at(logits, x)
        return pull_back(cotangent(of, values, classes))

    return run


def _gradient_times_input(logits: keras.Model, of: Explained) -> Callable[..., tf.Tensor]:
    run = _gradient(logits, of)
    return lambda x, classes: x * run(x, classes)
