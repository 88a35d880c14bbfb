"""Activations in the certified rules: bounds of their slopes, and the relaxation.

For every change D of an element in [-e, e] about x, chords of f have slopes in [low, high]:

    f(x + D) - f(x) = s D,  low <= s <= high.

The elementwise bound is |f(x + D) - f(x)| <= max(|low|, |high|) e; the backward relaxation takes

    f(x + D) - f(x) = m D + residual,  |residual| <= h |D|,
    m = (low + high) / 2,  h = (high - low) / 2.

CROWN bounds f by two lines with offsets and takes the worst case of each element separately; here
the line goes through (x, f(x)), and the sum of all residuals is bounded under ||D||_2 <= l as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfrobust.bounds.operations.base import Operation
from tfrobust.bounds.operations.rounding import SMALLEST, UNIT_ROUNDOFF, or_infinite, rounded_up
from tfrobust.bounds.operations.support_function import RowGram, support_function_bound

__all__ = ["Activation", "Elementwise"]

# roundings by which an elementary function may err; TensorFlow's err by at most 9 (tested)
ACCURACY = 16
# of a product of a few of them, a slope
SLOPE_ACCURACY = 64
# an absolute error: of elementary functions, which have intermediate results that underflow
UNDERFLOW = 1e-35


class Activation(NamedTuple):
    """A scalar function f with bounds of its slope.

    Attributes:
        function: f itself.
        lipschitz: its largest slope.
        slopes: values x and bounds e >= 0 to (low, high): every (f(x + D) - f(x)) / D with
            |D| <= e lies between them; where f is not convex every f'(x + D) does.
        tangent: the derivative (a subgradient) where f is convex, else None.
        terms: (a, b): f(x) is computed from magnitudes up to a + b |x|, or up to |f(x)|.
        roundings: by which the computed f(x) errs at most.
        slopes_cancel: whether `slopes` are sums of terms of different signs, up to 2 in size.
    """

    function: Callable[[tf.Tensor], tf.Tensor]
    lipschitz: float
    slopes: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    tangent: Callable[[tf.Tensor], tf.Tensor] | None
    terms: tuple[float, float] = (0.0, 0.0)
    roundings: int = ACCURACY
    slopes_cancel: bool = False

    def slope_range(self, x: tf.Tensor, e: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`slopes` of an interval whose ends, as they are rounded, enclose [x - e, x + e].

        The slopes themselves have errors of at most SLOPE_ACCURACY roundings.
        """
        return self.slopes(x, (1 + 8 * UNIT_ROUNDOFF) * e + 8 * UNIT_ROUNDOFF * tf.abs(x))

    def steepest(self, x: tf.Tensor, e: tf.Tensor) -> tf.Tensor:
        """The largest |slope|, rounded up."""
        low, high = self.slope_range(x, e)
        largest = rounded_up(tf.maximum(tf.abs(low), tf.abs(high)), SLOPE_ACCURACY)
        if self.slopes_cancel:
            largest += 2 * SLOPE_ACCURACY * UNIT_ROUNDOFF
        return tf.minimum(largest, 1.00001 * self.lipschitz)


class Elementwise(Operation):
    """An activation. Elements that stay on one side of a kink are linear: low = high."""

    # errors of slopes, of their mean and of half their difference
    backward_terms = 4 * SLOPE_ACCURACY

    def __init__(self, activation: Activation, name: str):
        self.activation = activation
        self.rule = f"{name}: slope at most {activation.lipschitz:.4g}"

    def lipschitz_constant(self):
        return self.activation.lipschitz

    def apply(self, values):
        return self.activation.function(values[0])

    def elementwise_bound(self, inputs):
        x, elementwise = inputs.values[0], inputs.elementwise[0]
        return elementwise * self.activation.steepest(x, elementwise)

    def relax_backward(self, inputs, cotangent, gram: RowGram | None = None):
        """See `Operation`; `gram` is of the dense layer directly before, if there is one."""
        x, elementwise = inputs.values[0], inputs.elementwise[0] * tf.ones_like(inputs.values[0])
        low, high = self.activation.slope_range(x, elementwise)
        middle, half = (low + high) / 2, (high - low) / 2
        if self.activation.tangent is None:
            # a (f(x + D) - f(x)) >= a m D - |a| h |D|
            slope, residual = middle[:, None], tf.abs(cotangent) * half[:, None]
        else:
            # a convex function lies above its tangent: where a >= 0,
            # a (f(x + D) - f(x)) >= a f'(x) D, without residual
            upward = cotangent >= 0
            slope = tf.where(upward, self.activation.tangent(x)[:, None], middle[:, None])
            residual = tf.where(upward, 0.0, -cotangent * half[:, None])
        # loss = sup sum_i |a_i| h_i |D_i| over |D_i| <= e_i and ||D||_2 <= l
        loss = support_function_bound(residual, elementwise, inputs.l2[0], gram)
        return [cotangent * slope], loss

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # with the input's error E, u the unit roundoff and terms t that f is computed from:
        # max |f'| over [x - e - E, x + e + E] * E  +  u (roundings (|f(x)| + e_out) + 4 t)
        activation = self.activation
        x, (fixed, growing) = values[0], activation.terms
        distance = elementwise[0] + input_errors[0]
        if activation.tangent is not None:  # f' of a convex function increases
            distance = (1 + 8 * UNIT_ROUNDOFF) * distance + 8 * UNIT_ROUNDOFF * tf.abs(x)
            low, high = activation.tangent(x - distance), activation.tangent(x + distance)
            steepest = rounded_up(tf.maximum(tf.abs(low), tf.abs(high)), SLOPE_ACCURACY)
        else:
            steepest = activation.steepest(x, distance)
        terms = fixed + growing * (tf.abs(x) + elementwise[0])
        fresh = activation.roundings * (tf.abs(output) + output_elementwise) + 4 * terms
        error = rounded_up(steepest * input_errors[0] + UNIT_ROUNDOFF * fresh, 8)
        return or_infinite(error + (UNDERFLOW if activation.roundings else SMALLEST), 1)
