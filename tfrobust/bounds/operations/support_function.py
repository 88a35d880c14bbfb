"""The support function of a box intersected with an l2 ball, which bounds a residual."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.operations.rounding import dot, in_own_units, rounded_up

__all__ = ["RowGram", "support_function_bound"]

# fixed-point steps towards the best multiplier
DUAL_STEPS = 3
TINY = 1e-30


class RowGram(NamedTuple):
    """The Gram matrix of a dense layer's rows a_i: ||sum_i +-w_i a_i||^2 <= w^T |A A^T| w."""

    absolute: tf.Tensor
    """(outputs, outputs), |A A^T| / scale^2, rounded up."""
    scale: tf.Tensor
    """A number near A's largest entry."""
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
            w^T |A A^T| w. Needs weights (batch, margins, outputs).

    Returns:
        (batch, margins), rounded up.
    """
    features = math.prod(weights.shape[2:])
    shape = tf.shape(weights)
    # in units of the largest w and of the radius, as powers of two: no square underflows
    w, of_weights = in_own_units(tf.reshape(weights, tf.stack([shape[0], shape[1], features])))
    of_weights = of_weights[..., 0]
    of_radius = norms.power_of_two(radius)[:, None]
    t = tf.reshape(box * tf.ones_like(weights[:, 0]), tf.stack([shape[0], 1, features]))
    t = t / of_radius[..., None]
    radius = radius[:, None] / of_radius
    length = tf.sqrt(dot(w, w))
    best = tf.minimum(tf.linalg.matmul(w, t, transpose_b=True)[..., 0], length * radius)
    if gram is not None:
        square = dot(tf.linalg.matmul(w, gram.absolute), w)
        # one sum for each row of the matrix, and one over the rows
        root = rounded_up(tf.sqrt(square), features + 8)
        best = tf.minimum(best, root * gram.scale * (gram.l2[:, None] / of_radius))
    multiplier = length / tf.maximum(radius, TINY)
    for _ in range(DUAL_STEPS):
        m = tf.maximum(multiplier, TINY)
        maximiser = tf.minimum(t, w / m[..., None])
        # sum_i w_i t_i - m t_i^2 / 2; the second sum is at most half of the first
        value = dot(maximiser, w) - m / 2 * dot(maximiser, maximiser)
        best = tf.minimum(best, value + m * radius * radius / 2)
        face = tf.where(w >= m[..., None] * t, t, 0.0)
        rest = tf.where(w >= m[..., None] * t, 0.0, w)
        remaining = radius * radius - dot(face, face)
        # m^2 = sum over i not in F of w_i^2 / (radius^2 - sum over F of box_i^2)
        free = dot(rest, rest) / tf.maximum(remaining, 1e-6 * radius * radius + TINY)
        multiplier = tf.sqrt(free)
    return rounded_up(best, 3 * features + 16) * of_weights * of_radius
