"""The smallest step along one direction that changes the class (Peck 2017, Algorithm 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count
from tfrobust.attacks.direction import AttackFunction, all_finite, misclassified
from tfrobust.classifier import Classifier
from tfrobust.errors import InputError
from tfrobust.norms import clip_to_range, per_example

__all__ = ["bisect_along"]

# in a graph: from logits, images, labels and further scalars to directions of the images' shape
Direction = Callable[..., tf.Tensor]


def bisect_along(
    direction_of: Direction,
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *scalars: tf.Tensor,
    max_epsilon: float,
    steps: int,
    clip: bool = True,
    bracketed: bool = True,
) -> AttackFunction:
    """The smallest epsilon tried at which x + epsilon * direction, clipped, changes the class.

    Bisection in (0, max_epsilon]. Where no epsilon tried changes the class, or the direction is not
    finite, the attack fails.

    Args:
        direction_of: a function of a module: `(logits, x, labels, *scalars)` to directions
            (batch, *input).
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        scalars: passed to `direction_of`.
        max_epsilon: in the pixels' units.
        steps: bisection steps; epsilon is determined to max_epsilon / 2**steps.
        clip: False leaves x + epsilon * direction as it is, as Peck 2017 does.
        bracketed: whether max_epsilon itself has to change the class. False as in Algorithm 2.1,
            which does not try it before: an epsilon below can change the class where it does not.

    Raises:
        ValueError: `max_epsilon` is not positive, or `steps` is not a whole number >= 0.
    """
    if not 0 < max_epsilon < np.inf:
        raise InputError(f"max_epsilon must be positive and finite, got {max_epsilon}")
    steps = as_count("steps", steps, 0)
    if not clip:
        value_range = (-np.inf, np.inf)
    run = Classifier.of(model, x).compiled(_along, direction_of, bracketed, batched_args=2)
    largest, low, high = (tf.constant(v, tf.float32) for v in (max_epsilon, *value_range))
    count = tf.constant(steps)
    return lambda rows, labels: run(rows, labels, largest, count, low, high, *scalars)


def _along(logits: keras.Model, direction_of: Direction, bracketed: bool) -> Callable[..., Any]:
    """Build: see `bisect_along`."""

    def run(
        x: tf.Tensor,
        labels: tf.Tensor,
        largest: tf.Tensor,
        steps: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
        *scalars: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        direction = direction_of(logits, x, labels, *scalars)
        usable = all_finite(direction)
        direction = tf.where(per_example(usable, x), direction, tf.zeros_like(x))

        def image_at(epsilon: tf.Tensor) -> tf.Tensor:
            return clip_to_range(x + per_example(epsilon, x) * direction, (low, high))

        def is_adversarial(epsilon: tf.Tensor) -> tf.Tensor:
            return misclassified(logits(image_at(epsilon), training=False), labels)

        def halve(
            step: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            middle = (lower + upper) / 2
            adversarial = is_adversarial(middle)
            return (
                step + 1,
                tf.where(adversarial, lower, middle),
                tf.where(adversarial, middle, upper),
            )

        upper = tf.fill([tf.shape(x)[0]], largest)
        adversarial = is_adversarial(upper) if bracketed else tf.ones_like(usable)
        state = (tf.constant(0), tf.zeros_like(upper), upper)
        _, _, smallest = tf.while_loop(lambda step, *_: step < steps, halve, state)
        if not bracketed:
            adversarial = is_adversarial(smallest)
        return image_at(smallest), usable & adversarial

    return run
