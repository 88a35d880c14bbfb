"""Local response normalization (LRN) in the certified rules.

    y_i = x_i s_i^-beta,  s_i = k + alpha * sum of x_j^2 over the n neighbours j of channel i.

Its Jacobian at one position, (channels, channels), is J = diag(s^-beta) - C, where

    C_ij = 2 alpha beta x_i x_j s_i^(-beta-1)  for neighbours j of i, else 0.

With alpha * sum of x_j^2 = s_i - k, and 2 |x_i x_j| <= x_i^2 + x_j^2, sums of |C| are at most

    along row i:     2 beta sqrt(n) q_i,    q_i = (s_i - k) s_i^(-beta-1),
    along column j:  beta (n + 1) max q_i,

as in the column each entry i != j is at most beta q_i (both are neighbours of i), and i = j at most
2 beta q_j. By Schur's test ||C|| is at most the root of the product of both. As a function of s, q
increases up to s = k (beta + 1) / beta.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.operations.base import Operation, over_margins
from tfrobust.bounds.operations.rounding import (
    SMALLEST,
    UNIT_ROUNDOFF,
    or_infinite,
    rounded_up,
    upper_norm,
)

__all__ = ["ResponseNormalization"]


class ResponseNormalization(Operation):
    """LRN: nearly a scaling of each element, by s^-beta at x."""

    rule = "local response normalization: Schur's test on its Jacobian"

    def __init__(self, layer: Any):
        self.layer = layer
        # of a power and of the sums in it; both are relative to the largest slope
        self.terms = self.backward_terms = 256 + 8 * int(layer.depth_radius)

    def lipschitz_constant(self):
        """k^-beta + ||C||, over all inputs."""
        return float(float(self.layer.bias) ** -float(self.layer.beta) + self._coupling(math.inf))

    def apply(self, values):
        return self.layer(values[0])

    def _coupling(self, largest_bracket: Any) -> Any:
        """Bound of ||C|| where all s <= largest_bracket: beta sqrt(2 sqrt(n) (n + 1)) max q(s)."""
        k, beta = float(self.layer.bias), float(self.layer.beta)
        neighbours = 2 * int(self.layer.depth_radius) + 1
        local = isinstance(largest_bracket, tf.Tensor)
        if beta == 0 or self.layer.alpha == 0:
            return largest_bracket * 0.0 if local else 0.0
        peak = k * (beta + 1) / beta
        s = tf.minimum(largest_bracket, peak) if local else min(largest_bracket, peak)
        schur = math.sqrt(2 * math.sqrt(neighbours) * (neighbours + 1))
        return beta * schur * (s - k) * s ** (-beta - 1)

    def _brackets(self, x: tf.Tensor) -> tf.Tensor:
        """s = k + alpha * sum of neighbours' squares."""
        channels = x.shape[-1]
        radius = min(int(self.layer.depth_radius), channels - 1)
        band = tf.linalg.band_part(tf.ones((channels, channels), x.dtype), radius, radius)
        return self.layer.bias + self.layer.alpha * tf.linalg.matmul(x * x, band)

    def _relaxation(
        self, x: tf.Tensor, elementwise: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The slopes s(x)^-beta, and how far the Jacobian deviates from their diagonal in the ball.

        |x| is within e of |x| at the centre, so that s lies between s(max(0, |x| - e)) and
        s(|x| + e). By the mean value theorem, at each position,

            ||D_out - s(x)^-beta D|| <= deviation ||D||,
            deviation = max_i |s_i^-beta - s_i(x)^-beta| + ||C||.

        Returns:
            s(x)^-beta (batch, *input), deviation (batch, *positions), and the elementwise bound
            (batch, *input).
        """
        beta = float(self.layer.beta)
        elementwise = elementwise * tf.ones_like(x)
        slope = self._brackets(x) ** -beta
        largest = self._brackets(tf.abs(x) + elementwise)
        smallest = self._brackets(tf.nn.relu(tf.abs(x) - elementwise))
        diagonal = tf.maximum(smallest**-beta - slope, slope - largest**-beta)
        most = tf.reduce_max(largest, axis=-1)
        deviation = tf.reduce_max(diagonal, axis=-1) + self._coupling(most)
        # differences of powers and of s and k are rounded relative to their terms
        deviation += self.terms * UNIT_ROUNDOFF * self.lipschitz_constant()
        return slope, deviation, elementwise

    def elementwise_bound(self, inputs):
        # |D_out[i]| <= s_i^-beta e_i + deviation ||e||, the norm over the channels
        slope, deviation, e = self._relaxation(inputs.values[0], inputs.elementwise[0])
        length = norms.root_of_squares(e, axis=-1)[..., None]
        return e * slope + deviation[..., None] * length

    def relax_backward(self, inputs, cotangent):
        # at each position <a, D_out> >= <a s^-beta, D> - deviation ||a|| ||D||, and over the
        # positions Cauchy-Schwarz
        slope, deviation, _ = self._relaxation(inputs.values[0], inputs.elementwise[0])
        residual = over_margins(upper_norm, cotangent * deviation[:, None, ..., None])
        return [cotangent * slope[:, None]], residual * inputs.l2[0][:, None]

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # inherited: |J| E with s = k, its smallest value: k^-beta E_i + ||C|| ||E||
        length = norms.root_of_squares(input_errors[0], axis=-1)[..., None]
        steepest = float(self.layer.bias) ** -float(self.layer.beta)
        inherited = steepest * input_errors[0] + self._coupling(math.inf) * length
        # fresh: in s^-beta = exp(-beta log s), relative errors of s (from the sum of its terms) and
        # absolute errors of its logarithm are both multiplied by beta
        largest = self._brackets(tf.abs(values[0]) + elementwise[0])
        logarithm = tf.maximum(tf.abs(tf.math.log(largest)), abs(math.log(self.layer.bias)))
        neighbours = 2 * int(self.layer.depth_radius) + 1
        # squares that underflow, relative to s >= k, in roundings
        lost = 2 * float(self.layer.alpha) * neighbours * SMALLEST / float(self.layer.bias)
        power = float(self.layer.beta) * (neighbours + 6 + 4 * logarithm + lost / UNIT_ROUNDOFF)
        fresh = (32 + power) * UNIT_ROUNDOFF * (tf.abs(output) + output_elementwise)
        # squares of the largest numbers overflow
        usable = tf.abs(values[0]) + elementwise[0] < 1e15
        error = tf.where(usable, rounded_up(inherited + fresh, self.terms), math.inf)
        return or_infinite(error + 1e-35, neighbours)
