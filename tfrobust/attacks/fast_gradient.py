"""One step along the loss gradient, its size found by bisection (Peck 2017, Algorithm 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.attacks.direction import AttackFunction, all_finite, loss_direction, misclassified
from tfrobust.differentiate import compiled
from tfrobust.norms import clip_to_range, per_example

__all__ = ["fast_gradient_sign"]


def fast_gradient_sign(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    max_epsilon: float | None = None,
    steps: int = 20,
) -> AttackFunction:
    """The smallest epsilon seen at which x + epsilon * sign(g), clipped, changes the class.

    Bisection in (0, max_epsilon]; an example that max_epsilon does not change is unsuccessful
    (Peck 2017, Algorithm 2.1).

    Args:
        model: any classifier.
        x: (batch, *input), checked already.
        value_range: smallest and largest valid pixel.
        max_epsilon: in the pixels' units; 100/255 of the value range's width where None.
        steps: bisection steps; epsilon is found to max_epsilon / 2**steps.

    Raises:
        ValueError: `max_epsilon` is not positive, or `steps` is not a whole number >= 0.
    """
    if max_epsilon is None:
        max_epsilon = (value_range[1] - value_range[0]) * 100 / 255
    if not 0 < max_epsilon < np.inf:
        raise ValueError(f"max_epsilon must be positive and finite, got {max_epsilon}")
    if int(steps) != steps or steps < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps}")
    run = compiled(model, ("attack", "fast_gradient_sign"), _along(tf.sign), x, rowwise=2)
    largest, low, high = (tf.constant(v, tf.float32) for v in (max_epsilon, *value_range))
    count = tf.constant(int(steps))
    return lambda rows, labels: run(rows, labels, largest, count, low, high)


def _along(
    direction_of: Callable[[tf.Tensor], tf.Tensor],
) -> Callable[[keras.Model], Callable[..., Any]]:
    """A builder of the bisection along `direction_of(loss gradient)`."""

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(
            x: tf.Tensor,
            labels: tf.Tensor,
            largest: tf.Tensor,
            steps: tf.Tensor,
            low: tf.Tensor,
            high: tf.Tensor,
        ) -> tuple[tf.Tensor, tf.Tensor]:
            gradient = loss_direction(logits, x, labels)
            usable = all_finite(gradient)
            direction = tf.where(per_example(usable, x), direction_of(gradient), tf.zeros_like(x))

            def at(epsilon: tf.Tensor) -> tf.Tensor:
                return clip_to_range(x + per_example(epsilon, x) * direction, (low, high))

            def wrong(epsilon: tf.Tensor) -> tf.Tensor:
                return misclassified(logits(at(epsilon), training=False), labels)

            def halve(
                step: tf.Tensor, below: tf.Tensor, above: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                middle = (below + above) / 2
                success = wrong(middle)
                return step + 1, tf.where(success, below, middle), tf.where(success, middle, above)

            above = tf.fill([tf.shape(x)[0]], largest)
            found = usable & wrong(above)
            state = (tf.constant(0), tf.zeros_like(above), above)
            _, _, smallest = tf.while_loop(lambda step, *_: step < steps, halve, state)
            return at(smallest), found

        return run

    return build
