"""Line search along the loss gradient: Foolbox 1.8's GradientAttack, all examples at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count
from tfrobust.attacks.direction import AttackFunction, all_finite, loss_direction, misclassified
from tfrobust.classifier import Classifier
from tfrobust.errors import InputError
from tfrobust.norms import clip_to_range, norm, per_example

__all__ = ["gradient_attack"]

# a first success within the first REFINED steps is refined with REFINED smaller steps
REFINED = 20
# images per forward pass, as a multiple of the batch size
IMAGES_PER_ROW = 2


def gradient_attack(
    model: keras.Model,
    x: np.ndarray,
    value_range: tuple[float, float],
    *,
    epsilons: int = 1000,
    max_epsilon: float = 1.0,
) -> AttackFunction:
    """The smallest step along the loss gradient that changes the class.

    Steps are x + epsilon * g / rms(g) * (max - min), clipped; a success among the first 20
    epsilons is refined once with 20 steps below it (Etmann 2019; Foolbox 1.8, GradientAttack).

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
        epsilons: number of evenly spaced epsilons in (0, max_epsilon].
        max_epsilon: largest epsilon, relative to the width of the value range.

    Raises:
        ValueError: `epsilons` is not a positive whole number, or `max_epsilon` not positive.
    """
    epsilons = as_count("epsilons", epsilons, 1)
    if not 0 < max_epsilon < np.inf:
        raise InputError(f"max_epsilon must be positive and finite, got {max_epsilon}")
    run = Classifier.of(model, x).compiled(_line_search, batched_args=2)
    grid = tf.constant(np.linspace(0, max_epsilon, epsilons + 1)[1:], tf.float64)
    low, high = (tf.constant(value, tf.float32) for value in value_range)
    return lambda rows, labels: run(rows, labels, grid, low, high)


def _line_search(logits: keras.Model) -> Callable[..., Any]:
    """Build: see `gradient_attack`."""

    def run(
        x: tf.Tensor, labels: tf.Tensor, grid: tf.Tensor, low: tf.Tensor, high: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        gradient = loss_direction(logits, x, labels)
        largest = norm(gradient, math.inf)
        usable = all_finite(gradient) & (largest > 0)
        # scaled by its largest entry first: squares of huge or tiny gradients over- or underflow
        scaled = tf.where(
            per_example(usable, x), gradient / per_example(largest, x), tf.zeros_like(x)
        )
        rms = norm(scaled) / math.sqrt(math.prod(x.shape[1:]))
        direction = tf.math.divide_no_nan(scaled, per_example(rms, x)) * (high - low)

        def images_at(examples: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
            """Images (examples * steps, *input) at epsilon (examples, steps)."""
            size = tf.cast(epsilon, x.dtype)[(..., *[None] * (x.shape.rank - 1))]
            step = size * tf.gather(direction, examples)[:, None]
            shifted = tf.gather(x, examples)[:, None] + step
            return clip_to_range(tf.reshape(shifted, [-1, *x.shape[1:]]), (low, high))

        def is_adversarial(examples: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
            width = tf.shape(epsilon)[1]
            values = logits(images_at(examples, epsilon), training=False)
            classes = tf.repeat(tf.gather(labels, examples), width)
            return tf.reshape(misclassified(values, classes), [-1, width])

        every_example = tf.range(tf.shape(x)[0])
        coarse = tf.broadcast_to(grid, [tf.shape(x)[0], tf.shape(grid)[0]])
        first = _first_success(is_adversarial, coarse, every_example[usable])
        success = first < tf.shape(grid)[0]
        epsilon = tf.gather(grid, tf.minimum(first, tf.shape(grid)[0] - 1))

        fractions = tf.range(1, REFINED + 1, dtype=grid.dtype) / REFINED
        fine = epsilon[:, None] * fractions
        second = _first_success(is_adversarial, fine, every_example[success & (first < REFINED)])
        # `second` is REFINED for examples that were not refined
        refined = tf.gather(fine, tf.minimum(second, REFINED - 1), batch_dims=1)
        epsilon = tf.where(second < REFINED, refined, epsilon)
        return images_at(every_example, epsilon[:, None]), success

    return run


def _first_success(
    is_adversarial: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], grid: tf.Tensor, active: tf.Tensor
) -> tf.Tensor:
    """In a graph: the first step of the grid at which each `active` example is misclassified.

    All unsolved examples share every forward pass; the fewer they are, the more steps are tried per
    example, so that the total cost is the sum of the results.

    Args:
        is_adversarial: from examples (k,) and epsilons (k, width) to misclassified (k, width).
        grid: (batch, steps).
        active: (k,) indices into the batch.

    Returns:
        (batch,) indices of steps; the number of steps where no step succeeds.
    """
    batch, steps = tf.shape(grid)[0], tf.shape(grid)[1]

    def unsolved(start: tf.Tensor, active: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        return (start < steps) & (tf.size(active) > 0)

    def advance(
        start: tf.Tensor, active: tf.Tensor, first: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        width = tf.minimum(IMAGES_PER_ROW * batch // tf.size(active), steps - start)
        adversarial = is_adversarial(active, tf.gather(grid[:, start : start + width], active))
        solved = tf.reduce_any(adversarial, axis=1)
        step = start + tf.argmax(adversarial, axis=1, output_type=tf.int32)
        first = tf.tensor_scatter_nd_update(first, active[solved][:, None], step[solved])
        return start + width, active[~solved], first

    state = (tf.constant(0), active, tf.fill([batch], steps))
    shapes = (tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None]))
    return tf.while_loop(unsolved, advance, state, shapes, parallel_iterations=1)[2]
