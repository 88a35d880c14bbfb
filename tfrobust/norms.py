"""Per-example lp norms, unit vectors, and projections onto balls and pixel ranges.

Every function maps a batch of shape (batch, ...) to one number or one array per example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfrobust.errors import InputError

# the bits of a floating-point number that hold its exponent
_EXPONENT_BITS = {
    tf.float16: (tf.int16, 0x7C00),
    tf.bfloat16: (tf.int16, 0x7F80),
    tf.float32: (tf.int32, 0x7F800000),
    tf.float64: (tf.int64, 0x7FF0000000000000),
}

__all__ = ["clip_to_range", "flatten", "inner", "norm", "project_ball", "unit"]


def flatten(x: tf.Tensor) -> tf.Tensor:
    """(batch, ...) -> (batch, features)."""
    x = tf.convert_to_tensor(x)
    features = math.prod(x.shape[1:])
    # -1 takes one operation of a graph, the size of the batch four
    return tf.reshape(x, [-1 if features else tf.shape(x)[0], features])


def per_example(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Reshape (batch,) values so that they broadcast against `like`, (batch, ...)."""
    return tf.reshape(values, [-1] + [1] * (len(like.shape) - 1))


def inner(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Euclidean inner product of each pair of examples: (batch, ...) twice -> (batch,)."""
    return tf.reduce_sum(flatten(a) * flatten(b), axis=1)


def norm(x: tf.Tensor, p: float = 2) -> tf.Tensor:
    """lp norm of each example, p in {1, 2, inf}: (batch, ...) -> (batch,).

    The gradient at a zero example is zero, a subgradient, instead of NaN.

    Raises:
        InputError: p is not 1, 2 or infinity.
    """
    x = flatten(x)
    if p == 2:
        return root_of_squares(x, axis=1)
    if p == 1:
        return tf.reduce_sum(tf.abs(x), axis=1)
    if p == math.inf:
        return tf.reduce_max(tf.abs(x), axis=1)
    raise InputError(f"p must be 1, 2 or infinity, got {p!r}")


def root_of_squares(x: tf.Tensor, axis: int | Sequence[int]) -> tf.Tensor:
    """sqrt(sum x^2) along one or several axes, also where squares would under- or overflow.

    x is divided by a power of two near its largest entry, which changes no digit of the result
    where no square under- or overflows. The gradient where all x are zero is zero.
    """
    scale = tf.stop_gradient(power_of_two(tf.reduce_max(tf.abs(x), axis=axis, keepdims=True)))
    squares = tf.reduce_sum(tf.square(x / scale), axis=axis)
    zero = squares == 0
    safe = tf.where(zero, tf.ones_like(squares), squares)
    root = tf.where(zero, tf.zeros_like(squares), tf.sqrt(safe))
    return tf.reshape(scale, tf.shape(root)) * root


def hypotenuse(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """sqrt(a^2 + b^2) elementwise, also where the squares would under- or overflow."""
    scale = power_of_two(tf.maximum(tf.abs(a), tf.abs(b)))
    return scale * tf.sqrt(tf.square(a / scale) + tf.square(b / scale))


def power_of_two(x: tf.Tensor) -> tf.Tensor:
    """The largest power of two that is at most x, for x >= 0; 1 where x is 0 or not finite."""
    integers, exponent = _EXPONENT_BITS[x.dtype]
    power = tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(x, integers), exponent), x.dtype)
    return tf.where((power > 0) & tf.math.is_finite(power), power, tf.ones_like(power))


def unit(x: tf.Tensor, p: float = 2) -> tf.Tensor:
    """Each example divided by its lp norm; a zero example stays zero. Same shape as x."""
    x = tf.convert_to_tensor(x)
    return tf.math.divide_no_nan(x, per_example(norm(x, p), x))


def project_ball(x: tf.Tensor, radius: float | tf.Tensor, p: float = 2) -> tf.Tensor:
    """Euclidean projection of each example onto the lp ball of `radius` about zero.

    Args:
        x: (batch, ...).
        radius: a number, or one per example, (batch,); at least 0.
        p: 1, 2 or infinity. p = 1 is the sort-based projection of Duchi et al. 2008.

    Raises:
        InputError: p is not 1, 2 or infinity.
    """
    x = tf.convert_to_tensor(x)
    radius = tf.broadcast_to(tf.cast(radius, x.dtype), tf.shape(x)[:1])
    if p == math.inf:
        bound = per_example(radius, x)
        return tf.clip_by_value(x, -bound, bound)
    if p == 2:
        norms = norm(x)
        # a zero example has no direction; it lies inside every ball
        scale = tf.where(norms > radius, tf.math.divide_no_nan(radius, norms), tf.ones_like(norms))
        return x * per_example(scale, x)
    if p == 1:
        flat = flatten(x)
        # largest - |x_i| instead of |x_i|: what is left of the largest entry is a sum of positive
        # numbers, not a difference of large ones
        gaps = tf.reduce_max(tf.abs(flat), axis=1, keepdims=True) - tf.abs(flat)
        sorted_gaps = tf.sort(gaps, axis=1)
        ranks = tf.range(1, tf.shape(flat)[1] + 1, dtype=x.dtype)
        levels = (radius[:, None] + tf.cumsum(sorted_gaps, axis=1)) / ranks
        kept = tf.reduce_sum(tf.cast(levels > sorted_gaps, tf.int32), axis=1)
        level = tf.gather(levels, tf.maximum(kept - 1, 0), batch_dims=1)
        inside = tf.reduce_sum(tf.abs(flat), axis=1) <= radius
        projected = tf.sign(flat) * tf.nn.relu(level[:, None] - gaps)
        return tf.reshape(tf.where(inside[:, None], flat, projected), tf.shape(x))
    raise InputError(f"p must be 1, 2 or infinity, got {p!r}")


def clip_to_range(x: tf.Tensor, value_range: tuple[float, float]) -> tf.Tensor:
    """Project onto the box of valid pixels, (minimum, maximum)."""
    low, high = value_range
    return tf.clip_by_value(x, low, high)
