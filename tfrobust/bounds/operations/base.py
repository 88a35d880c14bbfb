"""One step in the certified rules: its value, and bounds of its change in a ball.

Let ||d||_2 <= r be a perturbation of the network's input, and D_s the change that it causes in the
value of step s. Forwards, every step gets two bounds of D_s,

    |D_s[i]| <= e_s[i]  (elementwise)    and    ||D_s||_2 <= l_s  (l2).

Backwards, each step is relaxed linearly, as in CROWN (Zhang et al. 2018), but about x: for every
cotangent a of its output,

    <a, D_out> >= <A^T a, D_in> - loss

with a linear map A that the step chooses and a loss that follows from the two bounds of D_in.
Composed back to the network's input, the change of a margin is at least a linear function of d
minus all losses.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.operations.rounding import (
    UNIT_ROUNDOFF,
    hypotenuse,
    or_infinite,
    rounded_up,
    underflow,
    upper_norm,
)

__all__ = [
    "Addition",
    "Concatenation",
    "InputBounds",
    "Lipschitz",
    "Operation",
    "over_margins",
]


class InputBounds(NamedTuple):
    """A step's inputs at x and bounds of their change in the ball; one list entry per input."""

    values: Sequence[tf.Tensor]
    """(batch, *input), at x."""
    elementwise: Sequence[tf.Tensor]
    """Bounds e of the absolute change of each element; they broadcast to `values`."""
    l2: Sequence[tf.Tensor]
    """(batch,), bounds l of the l2 norm of the change."""
    lipschitz: tf.Tensor
    """The step's own Lipschitz constant, rounded up: a scalar."""


class Operation(abc.ABC):
    """One step of a network. All methods but `lipschitz_constant` are for use in a graph.

    Attributes:
        rule: a description, for the table of layers.
        linear: whether the step is affine in its input.
        rounding_is_proved: whether `rounding_error` is a proven bound.
        terms: roundings in sequence of one element of `apply` and `elementwise_bound`.
        backward_terms: the same of one element of the cotangents of `relax_backward`, relative to
            `absolute_norm`; 0 where they are exact.
    """

    rule = ""
    linear = False
    rounding_is_proved = True
    terms = 8
    backward_terms = 8

    @abc.abstractmethod
    def lipschitz_constant(self) -> float:
        """A proven upper bound of the l2 Lipschitz constant; per input for `Addition`."""

    def absolute_norm(self) -> float:
        """A bound of || |A| ||, for the map A of `relax_backward` with absolute entries."""
        return self.lipschitz_constant()

    def l2_bound(self, l2: Sequence[tf.Tensor], lipschitz: tf.Tensor) -> tf.Tensor:
        """Bound l_out of the l2 norm of the output's change, from l of the inputs; any shape."""
        return lipschitz * l2[0]

    @abc.abstractmethod
    def apply(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """The step itself: (batch, *input) -> (batch, *output)."""

    @abc.abstractmethod
    def elementwise_bound(self, inputs: InputBounds) -> tf.Tensor:
        """Bound e_out of each output element's absolute change; broadcasts to (batch, *output)."""

    @abc.abstractmethod
    def relax_backward(
        self, inputs: InputBounds, cotangent: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Backward linear relaxation: a lower bound of <cotangent, change of the output>.

        Args:
            cotangent: (batch, margins, *output).

        Returns:
            a cotangent (batch, margins, *input) for each input, and loss (batch, margins) >= 0 with
            <cotangent, output change> >= sum of <cotangents, input changes> - loss.
        """

    @abc.abstractmethod
    def rounding_error(
        self,
        values: Sequence[tf.Tensor],
        elementwise: Sequence[tf.Tensor],
        output: tf.Tensor,
        output_elementwise: tf.Tensor,
        input_errors: Sequence[tf.Tensor],
    ) -> tf.Tensor:
        """Bound of the rounding error of the output in single precision, from the inputs' errors.

        It holds wherever inputs and output are within `elementwise` and `output_elementwise` of
        `values` and `output`.
        """


class Lipschitz(Operation):
    """Any function of which only a Lipschitz constant L is known: l_out = L sqrt(sum_i l_i^2).

    Attributes:
        roundings: relative error of the output in l2, in units of roundoff; None if unknown.
    """

    def __init__(
        self,
        function,
        constant: float,
        output_shape: tuple[int, ...],
        rule: str,
        *,
        roundings: int | None,
    ):
        self.function, self.constant, self.output_shape = function, float(constant), output_shape
        self.rule = rule
        self.roundings = 0 if roundings is None else roundings
        self.terms, self.backward_terms = self.roundings + 8, 0
        self.rounding_is_proved = roundings is not None

    def lipschitz_constant(self) -> float:
        return self.constant

    def apply(self, values):
        return self.function(values[0] if len(values) == 1 else list(values))

    def elementwise_bound(self, inputs):
        ones = tf.ones((1, *self.output_shape), inputs.values[0].dtype)
        return norms.per_example(self.l2_bound(inputs.l2, inputs.lipschitz), ones) * ones

    def l2_bound(self, l2, lipschitz):
        return lipschitz * hypotenuse(l2)

    def relax_backward(self, inputs, cotangent):
        # <a, D_out> >= -||a|| l_out: no linear part is known
        l2 = self.l2_bound(inputs.l2, inputs.lipschitz)
        loss = over_margins(upper_norm, cotangent) * rounded_up(l2, 16)[:, None]
        shape = tf.shape(cotangent)[:2]
        zeros = [
            tf.zeros(tf.concat([shape, value.shape[1:]], 0), value.dtype) for value in inputs.values
        ]
        return zeros, loss

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # L sqrt(sum_i ||E_i||^2) + roundings u || |output| + e_out ||
        inherited = self.l2_bound([upper_norm(error) for error in input_errors], self.constant)
        largest = upper_norm(tf.abs(output) + output_elementwise)
        error = inherited + self.roundings * UNIT_ROUNDOFF * largest
        error = rounded_up(error, 16) + underflow(self.terms) * (1 + largest)
        return norms.per_example(or_infinite(error, self.terms), output)


class Addition(Operation):
    """A weighted sum of branches, sum_i w_i x_i: sums, differences, averages."""

    linear = True

    def __init__(self, weights: Sequence[float]):
        self.weights = [float(weight) for weight in weights]
        self.terms = len(self.weights) + 2
        self.rule = "sum of the branches"

    def lipschitz_constant(self) -> float:
        return 1.0

    def absolute_norm(self):
        return max(map(abs, self.weights))  # of each branch

    def _absolute_sum(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        return sum(abs(weight) * part for weight, part in zip(self.weights, parts, strict=True))

    def l2_bound(self, l2, lipschitz):
        return self._absolute_sum(l2)

    def apply(self, values):
        return tf.add_n(
            [weight * value for weight, value in zip(self.weights, values, strict=True)]
        )

    def elementwise_bound(self, inputs):
        return self._absolute_sum(inputs.elementwise)

    def relax_backward(self, inputs, cotangent):
        loss = tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)
        return [weight * cotangent for weight in self.weights], loss

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # sum_i |w_i| (E_i + (n + 2) u (|x_i| + e_i)) for n branches
        largest = self._absolute_sum(
            [tf.abs(v) + e for v, e in zip(values, elementwise, strict=True)]
        )
        error = self._absolute_sum(input_errors) + self.terms * UNIT_ROUNDOFF * largest
        error = rounded_up(error, self.terms + 8) + underflow(self.terms) * (1 + largest)
        return or_infinite(error, self.terms)


class Concatenation(Operation):
    """Branches concatenated along one axis: l_out = sqrt(sum_i l_i^2)."""

    linear = True
    backward_terms = 0
    rule = "root of the branches' squares"

    def __init__(self, axis: int, sizes: Sequence[int]):
        self.axis, self.sizes = axis, list(sizes)  # axis counts the batch

    def lipschitz_constant(self) -> float:
        return 1.0

    def l2_bound(self, l2, lipschitz):
        return hypotenuse(l2)

    def apply(self, values):
        return tf.concat(list(values), self.axis)

    def elementwise_bound(self, inputs):
        return self._concatenated(inputs.elementwise, inputs.values)

    def _concatenated(self, parts: Sequence[tf.Tensor], values: Sequence[tf.Tensor]) -> tf.Tensor:
        full = [part * tf.ones_like(v) for part, v in zip(parts, values, strict=True)]
        return tf.concat(full, self.axis)

    def relax_backward(self, inputs, cotangent):
        parts = tf.split(cotangent, self.sizes, self.axis + 1)
        return parts, tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        return self._concatenated(input_errors, values)


def over_margins(function, cotangent: tf.Tensor) -> tf.Tensor:
    """Apply a function of a batch to (batch, margins, ...): the first two axes become one."""
    shape = tf.shape(cotangent)
    result = function(tf.reshape(cotangent, (-1, *cotangent.shape[2:])))
    return tf.reshape(result, tf.concat([shape[:2], tf.shape(result)[1:]], 0))
