"""Local response normalisation and lp pooling as the certified rules see them."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.operations.base import UNIT_ROUNDOFF, Operation, over_margins

__all__ = ["ResponseNormalisation", "response_normalisation_constant"]


def response_normalisation_constant(layer: Any) -> float:
    """A Lipschitz constant of LRN, y_i = x_i / (k + alpha * sum of x_j^2)^beta, everywhere.

    With s the bracket, the Jacobian is diag(s^-beta) minus 2 alpha beta x_i x_j s_i^(-beta-1) for
    n neighbours j. The rows of the latter sum up to at most 2 beta sqrt(n), its columns to at most
    beta (n + 1), times the largest (s - k) s^(-beta-1); a matrix's norm is at most the root of the
    product of both (Schur's test).
    """
    return float(_constant(layer, math.inf))


def _constant(layer: Any, most: Any) -> Any:
    k, beta = float(layer.bias), float(layer.beta)
    return k**-beta + _coupling(layer, most)


def _coupling(layer: Any, most: Any) -> Any:
    """The norm of the Jacobian's second part where the bracket s is at most `most`."""
    k, beta = float(layer.bias), float(layer.beta)
    neighbours = 2 * int(layer.depth_radius) + 1
    if beta == 0 or layer.alpha == 0:
        return most * 0.0 if isinstance(most, tf.Tensor) else 0.0
    peak = k * (beta + 1) / beta  # (s - k) s^(-beta-1) grows until there
    s = tf.minimum(most, peak) if isinstance(most, tf.Tensor) else min(most, peak)
    sums = math.sqrt(2 * math.sqrt(neighbours) * (neighbours + 1))
    return beta * sums * (s - k) * s ** (-beta - 1)


class ResponseNormalisation(Operation):
    """LRN: nearly a scaling of each element, by the bracket at x."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.rule = "local response normalisation: Schur's test on its Jacobian"

    def constant(self):
        return response_normalisation_constant(self.layer)

    def apply(self, values):
        return self.layer(values[0])

    def _brackets(self, x: tf.Tensor) -> tf.Tensor:
        """k + alpha * sum of neighbours' squares."""
        channels = x.shape[-1]
        radius = min(int(self.layer.depth_radius), channels - 1)
        band = tf.linalg.band_part(tf.ones((channels, channels), x.dtype), radius, radius)
        return self.layer.bias + self.layer.alpha * tf.linalg.matmul(x * x, band)

    def _local(self, values, changes, reaches):
        """The slope at x, and how far any slope in the ball is from it, at each position."""
        x, beta = values[0], float(self.layer.beta)
        change = changes[0] * tf.ones_like(x)
        slope = self._brackets(x) ** -beta
        largest = self._brackets(tf.abs(x) + change)
        smallest = self._brackets(tf.nn.relu(tf.abs(x) - change))
        spread = tf.maximum(smallest**-beta - slope, slope - largest**-beta)
        most = tf.reduce_max(largest, axis=-1)
        away = tf.reduce_max(spread, axis=-1) + _coupling(self.layer, most)
        return slope, away, change

    def spread(self, values, changes, reaches, constant):
        slope, away, change = self._local(values, changes, reaches)
        length = tf.sqrt(tf.reduce_sum(change * change, axis=-1, keepdims=True))
        return change * slope + away[..., None] * length

    def pull(self, values, changes, reaches, constant, cotangent):
        slope, away, _ = self._local(values, changes, reaches)
        lost = over_margins(norms.norm, cotangent * away[:, None, ..., None])
        return [cotangent * slope[:, None]], lost * reaches[0][:, None]

    def rounding(self, values, changes, output, change, errors):
        # errors move an output by no more than where the bracket is smallest
        length = tf.sqrt(tf.reduce_sum(errors[0] ** 2, axis=-1, keepdims=True))
        steepest = float(self.layer.bias) ** -float(self.layer.beta)
        moved = steepest * errors[0] + _coupling(self.layer, math.inf) * length
        # a power magnifies what the sum in the bracket lost, and what its logarithm does
        largest = self._brackets(tf.abs(values[0]) + changes[0])
        logarithm = tf.maximum(tf.abs(tf.math.log(largest)), abs(math.log(self.layer.bias)))
        lost = float(self.layer.beta) * (2 * int(self.layer.depth_radius) + 7 + 4 * logarithm)
        return moved + (32 + lost) * UNIT_ROUNDOFF * (tf.abs(output) + change)
