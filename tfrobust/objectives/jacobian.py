"""Jacobian regularization: small derivatives of all logits (Hoffman 2019; Noack 2020)."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import tensorflow as tf

from tfrobust.arguments import as_count
from tfrobust.distribution import place_in_batch
from tfrobust.errors import InputError
from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass
from tfrobust.objectives.gradient_norms import (
    NormScale,
    batch_norm,
    check_norm_scale,
    mean_norm,
    squared_norms,
)

__all__ = ["JacobianRegularization"]

Form = Literal["norm", "half_square", "printed"]


@dataclasses.dataclass(frozen=True)
class JacobianRegularization(Term):
    """A penalty on the Frobenius norm of the Jacobian J(x) of the logits, K of them.

    With projections, ||J||^2 is estimated from n directions v on the unit sphere in K dimensions,
    drawn anew for each example in each step: K / n * sum ||v^T J||^2, whose mean is ||J||^2.

    Records of `fit` hold also `jacobian_norm`, the mean of the norms, or of their estimates.

    Args:
        weight: lambda_J.
        projections: n; None for the exact norm, which takes K gradients.
        form: "norm" is lambda_J * mean_i ||J(x_i)||_F, eq. (13); of estimates, the root's mean is
            below the norm. "half_square" is lambda_J / 2 * mean_i ||J(x_i)||_F^2, Hoffman 2019, and
            unbiased with projections: with one, what the released code of Noack 2020 minimises.
            "printed" is eq. (14), sqrt(1 / n * sum ||v^T J||^2), which lacks the factor K:
            about 1 / sqrt(K) of the norm.
        norm_scale: of "norm" and "printed"; "batch" is the norm of the whole batch's Jacobians,
            as in the released code's exact form.

    Raises:
        InputError: a setting is out of range, or "printed" without projections.

    Source: Noack 2020, eqs. (13), (14); Hoffman, Roberts and Yaida 2019.
    """

    weight: float
    _: dataclasses.KW_ONLY
    projections: int | None = None
    form: Form = "norm"
    norm_scale: NormScale = "per_example"
    needs_input_gradients = True

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.projections is not None:
            projections = as_count("projections", self.projections, 1)
            object.__setattr__(self, "projections", projections)
        if self.form not in get_args(Form):
            raise InputError(f'form must be "norm", "half_square" or "printed", got {self.form!r}')
        if self.form == "printed" and self.projections is None:
            raise InputError('form="printed" is an estimate: give projections')
        check_norm_scale(self.norm_scale)

    @property
    def measured_names(self) -> tuple[str, ...]:
        return ("jacobian_norm",)

    def measured(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        return {"jacobian_norm": mean_norm(self._squares(batch), batch.x.dtype)}

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        squares = self._squares(batch)
        if self.form == "half_square":
            return self.weight / 2 * tf.cast(tf.reduce_mean(squares), batch.x.dtype)
        if self.form == "printed":
            squares /= batch.logits.shape[1]
        norm_of = batch_norm if self.norm_scale == "batch" else mean_norm
        return self.weight * norm_of(squares, batch.x.dtype)

    def _squares(self, batch: ForwardPass) -> tf.Tensor:
        """||J(x_i)||_F^2, or its estimate, (batch,); the same for both uses in a step."""
        key = f"jacobian squares {self.projections}"
        return batch.once(key, lambda: self._sum_of_squares(batch))

    def _sum_of_squares(self, batch: ForwardPass) -> tf.Tensor:
        classes = batch.logits.shape[1]
        rows = tf.shape(batch.logits)[0]
        if self.projections is None:
            ones = (tf.one_hot(tf.fill([rows], k), classes) for k in range(classes))
            directions = list(ones)
            factor = 1.0
        else:
            directions = tf.unstack(self._directions(batch, classes), axis=1)
            factor = classes / self.projections
        gradients = (
            batch.gradient_along(tf.cast(direction, batch.logits.dtype)) for direction in directions
        )
        return factor * tf.add_n([squared_norms(gradient) for gradient in gradients])

    def _directions(self, batch: ForwardPass, classes: int) -> tf.Tensor:
        """Uniform on the unit sphere, (batch, projections, classes), for any number of devices."""
        rows = tf.shape(batch.logits)[0]
        first, count = place_in_batch(rows)
        shape = [count, self.projections, classes]
        seed = tf.add(
            batch.seed, [1 << 29, 0]
        )  # not the numbers that random starts of attacks have
        normal = tf.random.stateless_normal(shape, seed)[first : first + rows]
        normal = tf.ensure_shape(normal, [None, self.projections, classes])
        return normal / tf.norm(normal, axis=2, keepdims=True)
