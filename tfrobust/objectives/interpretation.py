"""Interpretation Regularization: gradients that resemble target saliency maps (Noack 2020)."""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from tfrobust.errors import InputError
from tfrobust.norms import flatten, norm, unit
from tfrobust.objectives.base import Term
from tfrobust.objectives.forward_pass import ForwardPass
from tfrobust.objectives.gradient_norms import (
    NormScale,
    batch_norm,
    check_norm_scale,
    mean_norm,
    squared_norms,
)

__all__ = ["InterpretationRegularization"]


@dataclasses.dataclass(frozen=True)
class InterpretationRegularization(Term):
    """-lambda_d * mean_i cos(J_c(x_i), I_i) + lambda_m * ||J_c||, J_c the label's logit gradient.

        objective = CrossEntropy() + InterpretationRegularization(3.0, 0.15)
        fit(model, (images, labels, targets), objective, ...)

    I are the data's "targets", one map of the images' size per image. The cosine is zero, with a
    zero derivative, where a gradient or a map is zero; it does not depend on the scale of either.

    Records of `fit` hold also `cosine`, `gradient_norm` (means of cos(J_c, I) and ||J_c||),
    `zero_gradients` and `zero_targets` (shares of images whose gradient or map is zero).

    Args:
        lambda_d: weight of the direction.
        lambda_m: weight of the magnitude.
        norm_scale: "per_example" is mean_i ||J_c(x_i)||, as printed. "batch" is the norm of the
            whole batch's gradients, sqrt(sum_i ||J_c(x_i)||^2), as in the released code, whose
            lambdas the paper quotes: for equal norms sqrt(batch) times the former.
        threshold: phi; values of a map within mean +- phi * std of the map are set to zero in every
            batch, after any augmentation, as in the released code. None takes the maps as they
            are: `tfrobust.saliency.threshold` does it once, before augmentation.

    Raises:
        InputError: a weight or threshold is negative or not finite, or `norm_scale` is unknown;
            when called, maps of another size than the images.

    Source: Noack 2020, eq. (9).
    """

    lambda_d: float
    lambda_m: float
    _: dataclasses.KW_ONLY
    norm_scale: NormScale = "per_example"
    threshold: float | None = None
    needs_input_gradients = True

    def __post_init__(self) -> None:
        values = {"lambda_d": self.lambda_d, "lambda_m": self.lambda_m}
        if self.threshold is not None:
            values["threshold"] = self.threshold
        for name, value in values.items():
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be finite and not negative, got {value}")
        check_norm_scale(self.norm_scale)

    @property
    def measured_names(self) -> tuple[str, ...]:
        return ("cosine", "gradient_norm", "zero_gradients", "zero_targets")

    def measured(self, batch: ForwardPass) -> dict[str, tf.Tensor]:
        gradients, targets = batch.logit_gradients, self._targets(batch)
        return {
            "cosine": tf.reduce_mean(_cosines(gradients, targets)),
            "gradient_norm": mean_norm(squared_norms(gradients), batch.x.dtype),
            "zero_gradients": _zero_share(gradients),
            "zero_targets": _zero_share(targets),
        }

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        gradients = batch.logit_gradients
        squares = squared_norms(gradients)
        norm_of = batch_norm if self.norm_scale == "batch" else mean_norm
        cosines = _cosines(gradients, self._targets(batch))
        return self.lambda_m * norm_of(squares, batch.x.dtype) - self.lambda_d * tf.reduce_mean(
            cosines
        )

    def _targets(self, batch: ForwardPass) -> tf.Tensor:
        targets = batch.targets
        if targets.shape[1:] != batch.x.shape[1:]:
            raise InputError(
                f"targets have shape {tuple(targets.shape[1:])}, images {tuple(batch.x.shape[1:])}:"
                " a target map has one value per value of its image"
            )
        return targets if self.threshold is None else _thresholded(targets, self.threshold)


def _cosines(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """(batch,); zero where either is zero. Neither squares nor products over- or underflow."""
    a, b = (flatten(x) for x in (a, b))
    # cos does not depend on lengths, so that dividing by a constant leaves its derivative as it is
    a, b = (tf.math.divide_no_nan(x, tf.stop_gradient(norm(x, math.inf))[:, None]) for x in (a, b))
    return tf.reduce_sum(unit(a) * unit(b), axis=1)


def _zero_share(maps: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(norm(maps, math.inf) == 0, tf.float32))


def _thresholded(maps: tf.Tensor, phi: float) -> tf.Tensor:
    """Zero where a value lies within mean +- phi * std of its map, over all channels."""
    # in double precision, as `tfrobust.saliency.threshold`: squares of single ones may underflow
    flat = tf.cast(flatten(maps), tf.float64)
    centred = flat - tf.reduce_mean(flat, axis=1, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(centred), axis=1, keepdims=True))
    kept = tf.reshape(tf.abs(centred) > phi * deviation, tf.shape(maps))
    return tf.where(kept, maps, tf.zeros_like(maps))
