"""The shortest change inside the pixels' range that raises a linear function by an amount."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrobust.norms import inner, norm, per_example

__all__ = ["free_part", "nearest_in_box", "shortest_step"]

# of the multiplier, which is doubled until it suffices, then bisected
DOUBLINGS, HALVINGS = 12, 22


def nearest_in_box(
    gradient: tf.Tensor,
    gain: tf.Tensor,
    room: tuple[tf.Tensor, tf.Tensor],
    p: float,
) -> tf.Tensor:
    """In a graph: the change d of least lp norm with <gradient, d> >= gain inside a box.

    d = clip(lambda g) in l2, clip(lambda sign(g)) in l-infinity, by the conditions of Karush, Kuhn
    and Tucker; lambda by bisection. Where the whole box does not reach the gain, about its corner;
    zero where the gain is not positive.

    Args:
        gradient: (batch, ...).
        gain: (batch,).
        room: least and largest change of each pixel, (batch, ...) each.
        p: 2 or infinity.
    """
    direction = tf.sign(gradient) if p == math.inf else gradient
    slope = inner(gradient, direction)
    first = tf.math.divide_no_nan(tf.nn.relu(gain), slope)

    def change(multiplier: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(per_example(multiplier, gradient) * direction, *room)

    def suffices(multiplier: tf.Tensor) -> tf.Tensor:
        return inner(gradient, change(multiplier)) >= gain

    low, high = tf.zeros_like(first), first
    for _ in range(DOUBLINGS):
        enough = suffices(high)
        low, high = tf.where(enough, low, high), tf.where(enough, high, 2 * high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = suffices(middle)
        low, high = tf.where(enough, low, middle), tf.where(enough, middle, high)
    return change(high)


def free_part(
    gradient: tf.Tensor, at: tf.Tensor, value_range: tuple[tf.Tensor, tf.Tensor]
) -> tf.Tensor:
    """The gradient where a step along it stays in the range, else 0."""
    low, high = value_range
    blocked = ((at <= low) & (gradient < 0)) | ((at >= high) & (gradient > 0))
    return tf.where(blocked, tf.zeros_like(gradient), gradient)


def shortest_step(free: tf.Tensor, gain: tf.Tensor, p: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The step of least lp norm that raises <free, step> by the gain, and its length (batch,).

    The length is infinite where there is no gradient, and the step zero.
    """
    if p == math.inf:
        length = tf.math.divide_no_nan(gain, norm(free, 1))
        step = per_example(length, free) * tf.sign(free)
    else:
        size = norm(free)
        length = tf.math.divide_no_nan(gain, size)
        step = per_example(length, free) * tf.math.divide_no_nan(free, per_example(size, free))
    return step, tf.where(length > 0, length, math.inf)
