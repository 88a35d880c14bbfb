"""Rounding to single precision: how far a computed number lies from the exact one.

An operation is computed as (a op b)(1 + d) + f with |d| <= u = 2^-24 and |f| <= 2^-126: numbers
below the normal range may be flushed to zero, results as well as operands. With gamma_n =
n u / (1 - n u) a sum of n products, in any order, is computed with an error of at most (Higham
2002, chapter 3)

    gamma_n sum_i |a_i| |x_i|  +  2^-126 sum_i |a_i|  +  2 n 2^-126 (1 + max |x|),

unless it overflows. Bounds of changes and of errors are sums and products of numbers >= 0, whose
relative error is gamma_k after k roundings: times 1 + gamma_k they are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrobust import norms

__all__ = [
    "SMALLEST",
    "UNIT_ROUNDOFF",
    "dot",
    "gamma",
    "hypotenuse",
    "in_own_units",
    "or_infinite",
    "rounded_up",
    "underflow",
    "upper_norm",
]

UNIT_ROUNDOFF = 2.0**-24
SMALLEST = 2.0**-126
"""The smallest normal number; what is below may be flushed to zero."""
# an error above it says that sums may overflow: gamma_n times the largest number is above 1e31
_LARGEST_ERROR = 1e30


def gamma(count: int, unit: float = UNIT_ROUNDOFF) -> float:
    """gamma_n = n u / (1 - n u), the largest relative error of n successive roundings."""
    if count * unit >= 1:
        return math.inf
    return count * unit / (1 - count * unit)


def rounded_up(values: tf.Tensor, roundings: int) -> tf.Tensor:
    """An upper bound of numbers >= 0 that were computed with so many roundings in sequence."""
    return values * (1 + gamma(roundings + 2))  # one for this product, one for its factor


def underflow(terms: int) -> float:
    """2 n 2^-126, rounded up: the absolute error of a sum of n products of numbers up to 1."""
    return 2 * (terms + 2) * SMALLEST


def or_infinite(errors: tf.Tensor, terms: int) -> tf.Tensor:
    """Infinite where a sum of so many terms, with such bounds of its error, may overflow."""
    return tf.where(errors < _LARGEST_ERROR / (terms + 1), errors, math.inf)


def dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Sums of products over the last axis, of one shape: `a.shape[-1]` roundings in sequence.

    As matrix products, which keep no products in memory: up to ten times faster than multiply and
    sum.
    """
    return tf.linalg.matmul(a[..., None, :], b[..., None, :], transpose_b=True)[..., 0, 0]


def in_own_units(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """x / s and s (..., 1) for powers of two s along the last axis, so that squares can be summed.

    Either s is near the largest |x|, or all largest |x| are within [1e-8, 1e8] or zero, and s is 1.
    """
    largest = tf.maximum(
        tf.reduce_max(x, axis=-1, keepdims=True), -tf.reduce_min(x, axis=-1, keepdims=True)
    )
    extreme = (largest > 0) & ((largest < 1e-8) | (largest > 1e8))
    scale = norms.power_of_two(largest)
    return tf.cond(
        tf.reduce_any(extreme), lambda: (x / scale, scale), lambda: (x, tf.ones_like(scale))
    )


def upper_norm(x: tf.Tensor) -> tf.Tensor:
    """||x||_2 of each example, rounded up: (batch, ...) -> (batch,). NaN where x holds NaN."""
    flat, scale = in_own_units(norms.flatten(x))
    # the root halves relative errors; squares that underflow are below 1e-22 of the largest
    roundings = int(flat.shape[-1]) // 2 + 8
    return rounded_up(tf.sqrt(dot(flat, flat)) * scale[:, 0], roundings)


def hypotenuse(lengths: Sequence[Any]) -> Any:
    """sqrt(sum l_i^2) of tensors of one shape, or of numbers."""
    if len(lengths) == 1:
        return lengths[0]
    if isinstance(lengths[0], tf.Tensor):
        return norms.root_of_squares(tf.stack(lengths, axis=-1), axis=-1)
    return math.hypot(*lengths)
