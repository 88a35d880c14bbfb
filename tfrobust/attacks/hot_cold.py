"""One step from a cold class towards a hot one (Rozsa 2016), its size found by bisection."""

from __future__ import annotations

from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from tfrobust.attacks.bisection import bisect_along
from tfrobust.attacks.direction import AttackFunction, unit_direction
from tfrobust.attacks.fast_gradient import l2_reach
from tfrobust.classifier import classes_of, gradients_at
from tfrobust.errors import InputError

__all__ = ["hot_cold"]

# marks the class with the largest logit other than the label's
RUNNER_UP = -1


def hot_cold(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    hot: str | int = "runner_up",
    cold_weight: Literal["absolute", "signed"] = "absolute",
    max_epsilon: float | None = None,
    steps: int = 20,
    clip: bool = True,
    bracketed: bool = True,
) -> AttackFunction:
    """The smallest epsilon tried at which x + epsilon * d / ||d||, clipped, changes the class.

    d is the input gradient of sum_j w_j z_j, z the logits and w_hot = |z_hot|, w_cold = -|z_cold|,
    else 0, constant at their values at x; the cold class is the label. Rozsa, Rudd and Boult 2016
    use the features of a chosen layer: here these are the logits. Any class other than the label
    counts as success, not only the hot one. The direction is not invariant to a constant added to
    all logits, as the weights are the logits themselves; where both are zero there is none. Peck
    2017, eq. (2.9), prints w_cold = -z_cold, which leads *towards* a cold class whose logit is
    negative: `cold_weight="signed"`.

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        hot: "runner_up", the class with the largest logit other than the label's, or the index of
            one class for all examples; the attack then fails on examples of that class.
        cold_weight: "absolute", -|z_cold|, or "signed", -z_cold as printed.
        max_epsilon: l2, in the pixels' units; that of a change of 100/255 of the value range's
            width in every pixel where None.
        steps: bisection steps; epsilon is determined to max_epsilon / 2**steps.
        clip, bracketed: as of `fast_gradient_sign`.

    Raises:
        ValueError: `hot` is not a class, `cold_weight` is unknown, `max_epsilon` is not positive,
            or `steps` is not a whole number >= 0.
    """
    if cold_weight not in ("absolute", "signed"):
        raise InputError(f'cold_weight must be "absolute" or "signed", got {cold_weight!r}')
    classes = classes_of(model, x)
    is_index = isinstance(hot, (int, np.integer)) and not isinstance(hot, bool)
    if hot != "runner_up" and not (is_index and 0 <= hot < classes):
        raise InputError(f'hot must be "runner_up" or a class in 0..{classes - 1}, got {hot!r}')
    if max_epsilon is None:
        max_epsilon = l2_reach(x, value_range)
    return bisect_along(
        _towards_hot,
        model,
        x,
        value_range,
        tf.constant(RUNNER_UP if hot == "runner_up" else int(hot)),
        tf.constant(cold_weight == "signed"),
        max_epsilon=max_epsilon,
        steps=steps,
        clip=clip,
        bracketed=bracketed,
    )


def _towards_hot(
    logits: keras.Model, x: tf.Tensor, labels: tf.Tensor, hot: tf.Tensor, signed: tf.Tensor
) -> tf.Tensor:
    values, pull_back = gradients_at(logits, x)
    cold_one_hot = tf.one_hot(labels, values.shape[1], dtype=values.dtype)
    runner_up = tf.argmax(
        tf.where(cold_one_hot > 0, values.dtype.min, values), axis=1, output_type=tf.int32
    )
    hot_class = tf.where(hot == RUNNER_UP, runner_up, hot)
    hot_one_hot = tf.one_hot(hot_class, values.shape[1], dtype=values.dtype)
    cold_values = tf.where(signed, values, tf.abs(values))
    return unit_direction(pull_back(hot_one_hot * tf.abs(values) - cold_one_hot * cold_values))
