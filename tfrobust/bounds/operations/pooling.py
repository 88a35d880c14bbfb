"""Average and max pooling in the certified rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.operations.affine import Affine
from tfrobust.bounds.operations.base import Operation, over_margins
from tfrobust.bounds.operations.rounding import UNIT_ROUNDOFF, rounded_up
from tfrobust.bounds.operations.support_function import support_function_bound

__all__ = ["AveragePooling", "MaxPooling", "sliding_windows"]


class AveragePooling(Affine):
    """Average pooling: |A| = A, and no bias."""

    def __init__(self, layer, operator_norm, rule, *, terms: int, row_norm: float):
        super().__init__(layer, operator_norm, rule)
        self.terms, self.row_norm = terms, row_norm
        self.adjoint_terms = terms  # an input lies in no more windows than a window has inputs

    def product(self, x, of):
        return self.layer.call(x)  # does not cast

    def absolute_norm(self):
        return self.lipschitz_constant()

    def row_norms(self):
        return tf.constant(self.row_norm, tf.float32)


class MaxPooling(Operation):
    """Maxima over windows; a window in which only one entry can be the maximum is linear.

    Attributes:
        windows: from (batch, *input) and the padding's value to (batch, *output, entries).
        overlap: largest number of windows that contain one input.
    """

    def __init__(self, layer: Any, windows: Callable[..., tf.Tensor], overlap: int):
        self.layer, self.windows, self.overlap = layer, windows, overlap
        self.rule = f"max pooling: root of {overlap} window{'s' * (overlap > 1)} per input"
        self.backward_terms = overlap + 64

    def lipschitz_constant(self):
        return math.sqrt(self.overlap)

    def apply(self, values):
        return self.layer(values[0])

    def elementwise_bound(self, inputs):
        return self._window_maxima(inputs.elementwise[0] * tf.ones_like(inputs.values[0]))

    def _window_maxima(self, x: tf.Tensor) -> tf.Tensor:
        """Maxima over the windows of x >= 0; the padding's zeros never exceed them."""
        return tf.reduce_max(self.windows(x, 0.0), axis=-1)

    def relax_backward(self, inputs, cotangent):
        # with D the changes of a window's entries and D_max that of their maximum:
        # a >= 0:  a D_max >= a D_winner, as the maximum is at least the winner's value; no loss
        # a < 0:   a D_max >= a <weights, D> - |a| steepness ||D||
        x = inputs.values[0]
        winner, weights, steepness, window_l2 = self._relaxation(x, inputs.elementwise[0])
        upward = cotangent >= 0
        slopes = tf.where(upward[..., None], winner[:, None], weights[:, None])
        residual = tf.where(upward, 0.0, -cotangent * steepness[:, None])
        # an input lies in at most `overlap` windows, so that over the windows
        # sqrt(sum ||D||^2) <= sqrt(overlap) l, the Lipschitz constant times l
        radius = rounded_up(inputs.l2[0] * inputs.lipschitz, 1)
        loss = support_function_bound(residual, window_l2, radius)
        input_cotangent = over_margins(
            lambda a: self._windows_adjoint(x, a), cotangent[..., None] * slopes
        )
        return [input_cotangent], loss

    def _relaxation(
        self, x: tf.Tensor, elementwise: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Slopes of linear bounds of each maximum, the residual of the upper one, and bounds c.

        Let g_i = max x - x_i, c a bound of ||D|| over the entries that can be the maximum somewhere
        in the ball, and w the weights of a convex combination of them. With unit vectors e_i,

            D_max - <w, D> = max_i (<e_i - w, D> - g_i) <= max_i (||e_i - w|| ||D|| - g_i)
                           <= ||D|| max_i (||e_i - w|| - g_i / c),

        for ||D|| <= c, with ||e_i - w||^2 = ||w||^2 - 2 w_i + 1. Any w is sound; here w_i is
        proportional to max(1 - g_i / c, 0).

        Returns:
            the winner, one-hot, and w, (batch, *output, entries); steepness =
            max(0, max_i (||e_i - w|| - g_i / c)) and c, (batch, *output).
        """
        padding = tf.constant(x.dtype.min, x.dtype)  # never the maximum
        entries = self.windows(x, padding)
        # entries are compared after adding changes to them, which is rounded
        change = self.windows(elementwise + 4 * UNIT_ROUNDOFF * tf.abs(x), 0.0)
        top = tf.reduce_max(entries, axis=-1, keepdims=True)
        winner = tf.one_hot(tf.argmax(entries, axis=-1), entries.shape[-1], dtype=x.dtype)
        # entries that can be the largest somewhere in the ball
        possible = entries + change >= tf.reduce_max(entries - change, axis=-1, keepdims=True)
        possible = tf.cast(possible, x.dtype)
        contested = tf.reduce_sum(possible, axis=-1) > 1.5
        # g_i; padding and entries that cannot win have weight 0
        gaps = tf.where(possible > 0, top - entries, 0.0)
        window_l2 = norms.root_of_squares(possible * change, axis=-1)[..., None]
        window_l2 = tf.maximum(rounded_up(window_l2, entries.shape[-1] + 8), 1e-35)
        weights = possible * tf.nn.relu(1 - gaps / window_l2)
        weights = weights / tf.reduce_sum(weights, axis=-1, keepdims=True)
        squares = tf.reduce_sum(weights * weights, axis=-1, keepdims=True) - 2 * weights + 1
        # the squares are sums of terms up to 2, and cancel where w is e_i
        squares = tf.nn.relu(squares) + 32 * UNIT_ROUNDOFF
        steepness = possible * (tf.sqrt(squares) - gaps / window_l2)
        steepness = tf.reduce_max(steepness, axis=-1)
        # a single possible winner: the window is linear
        steepness = tf.where(contested, tf.nn.relu(steepness), 0.0)
        weights = tf.where(contested[..., None], weights, winner)
        return winner, weights, steepness, window_l2[..., 0]

    def _windows_adjoint(self, like: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
        """The adjoint of `windows`, of (batch, *output, entries)."""
        zeros = tf.zeros(tf.concat([tf.shape(cotangent)[:1], like.shape[1:]], 0), like.dtype)
        with tf.GradientTape() as tape:
            tape.watch(zeros)
            windows = self.windows(zeros, 0.0)
        return tape.gradient(windows, zeros, cotangent)

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # a maximum is exact: its error is at most the largest of its inputs'
        return self._window_maxima(input_errors[0] * tf.ones_like(values[0]))


def sliding_windows(
    pool: tuple[int, ...], strides: tuple[int, ...], padding: tuple[tuple[int, int], ...]
) -> Callable[[tf.Tensor, Any], tf.Tensor]:
    """A function from (batch, *sizes, channels) to (batch, *windows, channels, entries)."""

    def windows(x: tf.Tensor, fill: Any) -> tf.Tensor:
        if any(sum(pair) for pair in padding):
            x = tf.pad(x, [(0, 0), *padding, (0, 0)], constant_values=fill)
        counts = [
            (size - p) // s + 1 for size, p, s in zip(x.shape[1:-1], pool, strides, strict=True)
        ]
        entries = []
        for offset in np.ndindex(*pool):
            positions = tuple(
                slice(o, o + (count - 1) * s + 1, s)
                for o, count, s in zip(offset, counts, strides, strict=True)
            )
            entries.append(x[(slice(None), *positions)])
        return tf.stack(entries, axis=-1)

    return windows
