"""One step along the loss gradient, its size found by bisection (Peck 2017, Algorithm 2.1)."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf

from tfrobust.attacks.bisection import bisect_along
from tfrobust.attacks.direction import AttackFunction, loss_direction, unit_direction
from tfrobust.classifier import gradients_at, softmax
from tfrobust.errors import InputError

__all__ = ["LARGEST", "fast_gradient_sign", "fast_gradient_value", "l2_reach"]

# the largest change of a pixel, relative to the width of the value range
LARGEST = 100 / 255


def fast_gradient_sign(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    max_epsilon: float | None = None,
    steps: int = 20,
    clip: bool = True,
    bracketed: bool = True,
) -> AttackFunction:
    """The smallest epsilon tried at which x + epsilon * sign(g), clipped, changes the class.

    g is the gradient of the cross-entropy of the label (Goodfellow 2015; Peck 2017, eq. (2.8) and
    Algorithm 2.1, as printed with `clip=False` and `bracketed=False`).

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        max_epsilon: in the pixels' units; 100/255 of the value range's width where None.
        steps: bisection steps; epsilon is determined to max_epsilon / 2**steps.
        clip: False leaves images outside the range as they are, as in the thesis.
        bracketed: False finds an epsilon below max_epsilon also where max_epsilon itself does not
            change the class, as Algorithm 2.1 does.

    Raises:
        ValueError: `max_epsilon` is not positive, or `steps` is not a whole number >= 0.
    """
    if max_epsilon is None:
        max_epsilon = (value_range[1] - value_range[0]) * LARGEST
    return bisect_along(
        _sign,
        model,
        x,
        value_range,
        max_epsilon=max_epsilon,
        steps=steps,
        clip=clip,
        bracketed=bracketed,
    )


def fast_gradient_value(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    max_epsilon: float | None = None,
    steps: int = 20,
    clip: bool = True,
    bracketed: bool = True,
    normalized: bool = True,
) -> AttackFunction:
    """The smallest epsilon tried at which x + epsilon * g / ||g||, clipped, changes the class.

    g is the gradient of the cross-entropy of the label (Rozsa 2016; Peck 2017, eq. (2.10)),
    normalised here, so that epsilon is the perturbation's l2 norm where nothing is clipped. Its
    size is determined as in Peck 2017, Algorithm 2.1.

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        max_epsilon: l2, in the pixels' units; that of a change of 100/255 of the value range's
            width in every pixel where None.
        steps: bisection steps; epsilon is determined to max_epsilon / 2**steps.
        clip, bracketed: as of `fast_gradient_sign`.
        normalized: False for x + epsilon * g as printed, whose reach ends where the loss's gradient
            is small; `max_epsilon` must be given.

    Raises:
        ValueError: `max_epsilon` is not positive, or missing for a gradient that is not normalised,
            or `steps` is not a whole number >= 0.
    """
    if max_epsilon is None and not normalized:
        raise InputError("max_epsilon must be given: epsilon multiplies the gradient as it is")
    if max_epsilon is None:
        max_epsilon = l2_reach(x, value_range)
    return bisect_along(
        _value if normalized else _gradient,
        model,
        x,
        value_range,
        max_epsilon=max_epsilon,
        steps=steps,
        clip=clip,
        bracketed=bracketed,
    )


def l2_reach(x: np.ndarray, value_range: tuple[float, float]) -> float:
    """l2 norm of a change of 100/255 of the value range's width in every pixel."""
    return LARGEST * (value_range[1] - value_range[0]) * math.sqrt(math.prod(x.shape[1:]))


def _sign(logits: keras.Model, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.sign(loss_direction(logits, x, labels))


def _gradient(logits: keras.Model, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    values, pull_back = gradients_at(logits, x)
    return pull_back(softmax(values) - tf.one_hot(labels, values.shape[1], dtype=values.dtype))


def _value(logits: keras.Model, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return unit_direction(loss_direction(logits, x, labels))
