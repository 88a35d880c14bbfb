"""Average and max pooling as the certified rules see them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.bounds.operations.affine import Affine
from tfrobust.bounds.operations.base import Operation, heaviest_load, over_margins

__all__ = ["AveragePooling", "MaxPooling", "sliding_windows"]


class AveragePooling(Affine):
    """Average pooling: no negative weights, no bias."""

    def __init__(self, layer, norm, rule, terms: int, row: float):
        super().__init__(layer, norm, rule)
        self.terms, self.row = terms, row
        self.adjoint_terms = terms  # an input lies in no more windows than a window has inputs

    def magnitude(self, x):
        return self.apply([x])

    def rows(self):
        return tf.constant(self.row, tf.float32)


class MaxPooling(Operation):
    """Maxima over windows; a window whose maximum cannot change place is linear.

    Attributes:
        windows: (batch, *input) and what to pad with, to (batch, *output, entries).
        overlap: how many windows an input can lie in, at most.
    """

    def __init__(self, layer: Any, windows: Callable[..., tf.Tensor], overlap: int):
        self.layer, self.windows, self.overlap = layer, windows, overlap
        self.rule = f"max pooling: root of {overlap} window{'s' * (overlap > 1)} an input"

    def constant(self):
        return math.sqrt(self.overlap)

    def apply(self, values):
        return self.layer(values[0])

    def spread(self, values, changes, reaches, constant):
        return tf.reduce_max(self.windows(changes[0] * tf.ones_like(values[0]), 0.0), axis=-1)

    def pull(self, values, changes, reaches, constant, cotangent):
        x = values[0]
        lowest = tf.constant(-1e30, x.dtype)  # padding never wins
        entries = self.windows(x, lowest)
        change = self.windows(changes[0] * tf.ones_like(x), 0.0)
        top = tf.reduce_max(entries, axis=-1, keepdims=True)
        winner = tf.one_hot(tf.argmax(entries, axis=-1), entries.shape[-1], dtype=x.dtype)
        # entries that can be the largest somewhere in the ball
        possible = entries + change >= tf.reduce_max(entries - change, axis=-1, keepdims=True)
        possible = tf.cast(possible, x.dtype)
        contested = tf.reduce_sum(possible, axis=-1) > 1.5
        # padding, and entries that cannot win, are far away
        gaps = tf.where(possible > 0, top - entries, 0.0)
        cap = tf.sqrt(tf.reduce_sum(possible * change * change, axis=-1, keepdims=True))
        cap = tf.maximum(cap, 1e-30)
        # a mean of the possible entries, the nearer ones more: max - mean grows by at most
        # steepness times the l2 norm of the window's change
        mean = possible * tf.nn.relu(1 - gaps / cap)
        mean = mean / tf.reduce_sum(mean, axis=-1, keepdims=True)
        squares = tf.reduce_sum(mean * mean, axis=-1, keepdims=True) - 2 * mean + 1
        steepness = tf.reduce_max(possible * (tf.sqrt(tf.nn.relu(squares)) - gaps / cap), axis=-1)
        steepness = tf.where(contested, tf.nn.relu(steepness), 0.0)
        mean = tf.where(contested[..., None], mean, winner)
        # the maximum is at least the winner's value: that side loses nothing
        upward = cotangent >= 0
        weights = tf.where(upward[..., None], winner[:, None], mean[:, None])
        uncertain = tf.where(upward, 0.0, -cotangent * steepness[:, None])
        lost = heaviest_load(uncertain, cap[..., 0], reaches[0] * constant)
        pulled = over_margins(lambda rows: self._scatter(x, rows), cotangent[..., None] * weights)
        return [pulled], lost

    def _scatter(self, like: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """The adjoint of `windows`."""
        zeros = tf.zeros(tf.concat([tf.shape(rows)[:1], like.shape[1:]], 0), like.dtype)
        with tf.GradientTape() as tape:
            tape.watch(zeros)
            windows = self.windows(zeros, 0.0)
        return tape.gradient(windows, zeros, rows)

    def rounding(self, values, changes, output, change, errors):
        return self.spread(values, errors, None, None)


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
        pieces = []
        for offset in np.ndindex(*pool):
            cut = tuple(
                slice(o, o + (count - 1) * s + 1, s)
                for o, count, s in zip(offset, counts, strides, strict=True)
            )
            pieces.append(x[(slice(None), *cut)])
        return tf.stack(pieces, axis=-1)

    return windows
