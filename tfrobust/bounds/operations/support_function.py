"""The support function of a box intersected with an l2 ball, which bounds a residual."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

__all__ = ["RowGram", "support_function_bound"]

# fixed-point steps towards the best multiplier
DUAL_STEPS = 3
TINY = 1e-30


class RowGram(NamedTuple):
    """The Gram matrix of a dense layer's rows a_i: ||sum_i +-w_i a_i||^2 <= w^T |A A^T| w."""

    absolute: tf.Tensor
    """(outputs, outputs), |A A^T|, rounded up."""
    l2: tf.Tensor
    """(batch,), bound of the l2 norm of the change of the layer's input."""


def support_function_bound(
    weights: tf.Tensor, box: tf.Tensor, radius: tf.Tensor, gram: RowGram | None = None
) -> tf.Tensor:
    """An upper bound of h(w) = sup <w, t> over |t_i| <= box_i and ||t||_2 <= radius, for w >= 0.

    By weak duality: for any multiplier m > 0, and t on the set,

        <w, t> <= <w, t> + m / 2 (radius^2 - ||t||^2)
               <= sum_i max over |t_i| <= box_i of (w_i t_i - m t_i^2 / 2)  +  m radius^2 / 2,

    whose maximum is at t_i(m) = min(box_i, w_i / m). Stationary in m where ||t(m)|| = radius: with
    F = {i: w_i >= m box_i}, the coordinates at the box's faces,

        m^2 = sum over i not in F of w_i^2 / (radius^2 - sum over F of box_i^2),

    iterated from m = ||w|| / radius, its solution for an infinite box. Every m gives a bound, and
    the least of them is returned, with <w, box> (the box alone) and ||w|| radius (the ball alone).

    Args:
        weights: w, (batch, margins, ...), not negative.
        box: (batch, ...), not negative; may broadcast.
        radius: (batch,).
        gram: where t is at most |A d| with ||d|| <= gram.l2, for the rows a_i of A. Then also
            <w, t> <= gram.l2 ||sum of +-w_i a_i|| for some signs, whose square is at most
            w^T |A A^T| w.

    Returns:
        (batch, margins).
    """
    features = math.prod(weights.shape[2:])
    shape = tf.shape(weights)
    w = tf.reshape(weights, tf.stack([shape[0], shape[1], features]))
    t = tf.reshape(box * tf.ones_like(weights[:, 0]), tf.stack([shape[0], 1, features]))
    radius = radius[:, None]
    tiny = tf.constant(TINY, w.dtype)
    length = tf.sqrt(tf.reduce_sum(w * w, axis=2))
    best = tf.minimum(tf.reduce_sum(w * t, axis=2), length * radius)
    if gram is not None:
        square = tf.reduce_sum(tf.linalg.matmul(w, gram.absolute) * w, axis=2)
        best = tf.minimum(best, tf.sqrt(square) * gram.l2[:, None])
    multiplier = length / tf.maximum(radius, tiny)
    for _ in range(DUAL_STEPS):
        m = tf.maximum(multiplier, tiny)
        maximiser = tf.minimum(t, w / m[:, :, None])
        # sum_i w_i t_i - m t_i^2 / 2, as a product to avoid cancellation
        value = tf.reduce_sum(maximiser * (w - m[:, :, None] * maximiser / 2), axis=2)
        best = tf.minimum(best, value + m * radius * radius / 2)
        at_face = tf.cast(w >= m[:, :, None] * t, w.dtype)
        remaining = radius * radius - tf.reduce_sum(at_face * t * t, axis=2)
        free = tf.reduce_sum((1 - at_face) * w * w, axis=2)
        # m^2 = sum over i not in F of w_i^2 / (radius^2 - sum over F of box_i^2)
        multiplier = tf.sqrt(free / tf.maximum(remaining, 1e-6 * radius * radius + tiny))
    return best
