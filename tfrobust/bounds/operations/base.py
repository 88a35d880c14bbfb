"""What the certified rules know of one step: values, Lipschitz constants and changes in a ball.

For a network and a ball about x every step gets a bound of the l2 norm of its input's change
(`reach`, (batch,)) and of each element's (`change`, (batch, *input)). A step is replaced by a
linear map plus a residual: margins are then exactly linear in the perturbation but for the
residuals, each weighed by the margin's gradient behind it (`pull`).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfrobust import norms

__all__ = ["UNIT_ROUNDOFF", "Addition", "Concatenation", "Lipschitz", "Operation", "Rows"]

UNIT_ROUNDOFF = 2.0**-24


class Operation(abc.ABC):
    """One step. Methods but `constant` work in a graph; lists have one entry an input.

    Attributes:
        rule: in words, for the table of layers.
        linear: whether the step is affine in its input.
        rounding_is_proved: whether `rounding` is a proven bound.
    """

    rule = ""
    linear = False
    rounding_is_proved = True

    @abc.abstractmethod
    def constant(self) -> float:
        """A proven upper bound of the l2 Lipschitz constant; of each input for `Addition`."""

    def reach(self, reaches: Sequence[tf.Tensor], constant: tf.Tensor) -> tf.Tensor:
        """Bound of the output's change, from those of the inputs; numbers of any one shape."""
        return constant * reaches[0]

    @abc.abstractmethod
    def apply(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """The step itself: (batch, *input) -> (batch, *output)."""

    @abc.abstractmethod
    def spread(
        self,
        values: Sequence[tf.Tensor],
        changes: Sequence[tf.Tensor],
        reaches: Sequence[tf.Tensor],
        constant: tf.Tensor,
    ) -> tf.Tensor:
        """Bound of each output element's change: (batch, *output), or what broadcasts to it."""

    @abc.abstractmethod
    def pull(
        self,
        values: Sequence[tf.Tensor],
        changes: Sequence[tf.Tensor],
        reaches: Sequence[tf.Tensor],
        constant: tf.Tensor,
        cotangent: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Replace <cotangent, change of the output> by something linear in the input's change.

        Args:
            cotangent: (batch, margins, *output).

        Returns:
            a cotangent (batch, margins, *input) for each input, and loss (batch, margins) >= 0 with
            <cotangent, output change> >= sum of <cotangents, input changes> - loss.
        """

    @abc.abstractmethod
    def rounding(
        self,
        values: Sequence[tf.Tensor],
        changes: Sequence[tf.Tensor],
        output: tf.Tensor,
        change: tf.Tensor,
        errors: Sequence[tf.Tensor],
    ) -> tf.Tensor:
        """Bound of the computed output's error in single precision, from the inputs' errors.

        Wherever inputs and output are within `changes` and `change` of `values` and `output`.
        """


class Lipschitz(Operation):
    """Any function of which a Lipschitz constant alone is known.

    Attributes:
        roundings: how many the output's norm errs by; None where nobody knows.
    """

    def __init__(
        self,
        function,
        constant: float,
        output_shape: tuple[int, ...],
        rule: str,
        roundings: int | None,
    ):
        self.function, self.value, self.output_shape = function, float(constant), output_shape
        self.rule = rule
        self.roundings = 0 if roundings is None else roundings
        self.rounding_is_proved = roundings is not None

    def constant(self) -> float:
        return self.value

    def apply(self, values):
        return self.function(values[0] if len(values) == 1 else list(values))

    def spread(self, values, changes, reaches, constant):
        bound = tf.ones((1, *self.output_shape), values[0].dtype)
        return norms.per_example(self.reach(reaches, constant), bound) * bound

    def reach(self, reaches, constant):
        if len(reaches) == 1:
            return constant * reaches[0]
        return constant * tf.sqrt(tf.add_n([reach * reach for reach in reaches]))

    def pull(self, values, changes, reaches, constant, cotangent):
        lost = over_margins(norms.norm, cotangent) * self.reach(reaches, constant)[:, None]
        shape = tf.shape(cotangent)[:2]
        empty = [tf.zeros(tf.concat([shape, value.shape[1:]], 0), value.dtype) for value in values]
        return empty, lost

    def rounding(self, values, changes, output, change, errors):
        moved = self.reach([norms.norm(error) for error in errors], self.value)
        lost = self.roundings * UNIT_ROUNDOFF * norms.norm(tf.abs(output) + change)
        return norms.per_example(moved + lost, output)


class Addition(Operation):
    """A weighted sum of several branches: sums, differences, averages."""

    linear = True

    def __init__(self, weights: Sequence[float]):
        self.weights = [float(weight) for weight in weights]
        self.rule = "sum of the branches"

    def constant(self) -> float:
        return 1.0

    def _sum(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        return sum(abs(weight) * part for weight, part in zip(self.weights, parts, strict=True))

    def reach(self, reaches, constant):
        return self._sum(reaches)

    def apply(self, values):
        return tf.add_n(
            [weight * value for weight, value in zip(self.weights, values, strict=True)]
        )

    def spread(self, values, changes, reaches, constant):
        return self._sum(changes)

    def pull(self, values, changes, reaches, constant, cotangent):
        lost = tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)
        return [weight * cotangent for weight in self.weights], lost

    def rounding(self, values, changes, output, change, errors):
        magnitude = self._sum([tf.abs(v) + c for v, c in zip(values, changes, strict=True)])
        return self._sum(errors) + (len(values) + 2) * UNIT_ROUNDOFF * magnitude


class Concatenation(Operation):
    """Several branches side by side."""

    linear = True
    rule = "root of the branches' squares"

    def __init__(self, axis: int, sizes: Sequence[int]):
        self.axis, self.sizes = axis, list(sizes)  # axis counts the batch

    def constant(self) -> float:
        return 1.0

    def reach(self, reaches, constant):
        return sum(reach * reach for reach in reaches) ** 0.5

    def apply(self, values):
        return tf.concat(list(values), self.axis)

    def spread(self, values, changes, reaches, constant):
        full = [change * tf.ones_like(v) for change, v in zip(changes, values, strict=True)]
        return tf.concat(full, self.axis)

    def pull(self, values, changes, reaches, constant, cotangent):
        parts = tf.split(cotangent, self.sizes, self.axis + 1)
        return parts, tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)

    def rounding(self, values, changes, output, change, errors):
        return self.spread(values, errors, None, None)


def over_margins(function, cotangent: tf.Tensor, *more: tf.Tensor) -> tf.Tensor:
    """Apply a function of a batch to (batch, margins, ...): the first two axes become one."""
    shape = tf.shape(cotangent)
    result = function(tf.reshape(cotangent, (-1, *cotangent.shape[2:])), *more)
    return tf.reshape(result, tf.concat([shape[:2], tf.shape(result)[1:]], 0))


class Rows(NamedTuple):
    """How the rows of a linear layer overlap: what moves one of its outputs moves few others."""

    overlaps: tf.Tensor
    """(outputs, outputs), magnitudes of the rows' inner products."""
    reach: tf.Tensor
    """(batch,), of the layer's input."""


def heaviest_load(
    weights: tf.Tensor, caps: tf.Tensor, reach: tf.Tensor, rows: Rows | None = None
) -> tf.Tensor:
    """An upper bound of sup <w, t> over 0 <= t <= caps with l2 norm at most reach.

    Any multiplier gives a bound by Lagrangian duality; a few steps towards the best one.

    Args:
        weights: (batch, margins, ...), not negative.
        caps: (batch, ...), not negative.
        reach: (batch,).
        rows: where t is at most the magnitude of A d with ||d|| <= rows.reach; then also
            <w, t> <= rows.reach * ||sum of w_i +- a_i|| for some signs, whose square is at most
            w^T |A A^T| w.

    Returns:
        (batch, margins).
    """
    features = 1
    for size in weights.shape[2:]:
        features *= size
    shape = tf.shape(weights)
    w = tf.reshape(weights, tf.stack([shape[0], shape[1], features]))
    t = tf.reshape(caps * tf.ones_like(weights[:, 0]), tf.stack([shape[0], 1, features]))
    radius = reach[:, None]
    tiny = tf.constant(1e-30, w.dtype)
    length = tf.sqrt(tf.reduce_sum(w * w, axis=2))
    best = tf.minimum(tf.reduce_sum(w * t, axis=2), length * radius)
    if rows is not None:
        together = tf.reduce_sum(tf.linalg.matmul(w, rows.overlaps) * w, axis=2)
        best = tf.minimum(best, tf.sqrt(together) * rows.reach[:, None])
    multiplier = length / tf.maximum(radius, tiny)
    for _ in range(3):
        scale = tf.maximum(multiplier, tiny)
        chosen = tf.minimum(t, w / scale[:, :, None])
        # w t - (m/2) t^2 + (m/2) r^2 summed, as a product to lose no digits
        value = tf.reduce_sum(chosen * (w - scale[:, :, None] * chosen / 2), axis=2)
        best = tf.minimum(best, value + scale * radius * radius / 2)
        full = tf.cast(w >= scale[:, :, None] * t, w.dtype)
        left = radius * radius - tf.reduce_sum(full * t * t, axis=2)
        free = tf.reduce_sum((1 - full) * w * w, axis=2)
        multiplier = tf.sqrt(free / tf.maximum(left, 1e-6 * radius * radius + tiny))
    return best
