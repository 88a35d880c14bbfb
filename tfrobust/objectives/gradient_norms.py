"""Norms of input gradients over a batch, as penalties have them."""

from __future__ import annotations

from typing import Literal, get_args

import tensorflow as tf

from tfrobust.distribution import replica_count
from tfrobust.errors import InputError
from tfrobust.norms import flatten

__all__ = ["NormScale", "batch_norm", "check_norm_scale", "mean_norm", "squared_norms"]

NormScale = Literal["per_example", "batch"]


def check_norm_scale(norm_scale: str) -> None:
    """Refuse an unknown `norm_scale`."""
    if norm_scale not in get_args(NormScale):
        raise InputError(f'norm_scale must be "per_example" or "batch", got {norm_scale!r}')


def squared_norms(gradients: tf.Tensor) -> tf.Tensor:
    """In a graph: ||g_i||^2, (batch,) float64, whose squares neither under- nor overflow."""
    return tf.reduce_sum(tf.square(tf.cast(flatten(gradients), tf.float64)), axis=1)


def mean_norm(squares: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """In a graph: mean_i sqrt(s_i) in `dtype`; zero, with a zero derivative, where s_i is zero."""
    return tf.cast(tf.reduce_mean(_root(squares)), dtype)


def batch_norm(squares: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """In a graph: sqrt(sum_i s_i) over the global batch in `dtype`, as a mean over devices.

    With R devices and N the norm, device r returns R S_r / (2 N) + N / 2, where S_r is its part of
    the sum and N is constant: the mean is N, its derivative sum_r dS_r / (2 N) = dN.
    """
    count = replica_count()
    own = tf.reduce_sum(squares)
    if count == 1:
        return tf.cast(_root(own), dtype)
    context = tf.distribute.get_replica_context()
    norm = _root(tf.stop_gradient(context.all_reduce("SUM", own)))
    return tf.cast(
        tf.math.divide_no_nan(tf.cast(count, own.dtype) * own, 2 * norm) + norm / 2, dtype
    )


def _root(squares: tf.Tensor) -> tf.Tensor:
    positive = squares > 0
    safe = tf.where(positive, squares, tf.ones_like(squares))
    return tf.where(positive, tf.sqrt(safe), tf.zeros_like(squares))
