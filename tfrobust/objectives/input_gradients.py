"""Penalties on input gradients: double backpropagation and alignment."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from tfrobust.distribution import replica_count
from tfrobust.errors import InputError
from tfrobust.norms import flatten, inner
from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["AlignmentPenalty", "DoubleBackprop"]


@dataclasses.dataclass(frozen=True)
class DoubleBackprop(Term):
    """Double backpropagation: the mean squared l2 norm of the cross-entropy's input gradient.

    Args:
        weight: lambda.
        penalty_scale: "per_example" is lambda * mean_i ||grad_x L_i||^2, as Etmann 2019 prints it.
            "batch_mean" is what the released code computes: it differentiates the batch mean of the
            loss, which divides the penalty by N^2 for a mean over N examples. The paper quotes the
            lambdas of the code.
        examples_per_mean: N; None for the global batch, so that the result does not depend on the
            number of devices. The released code has the batch of one device (16 on ImageNet, half
            the global batch).

    Source: Drucker and LeCun 1992; Etmann 2019, section 5.
    """

    weight: float
    _: dataclasses.KW_ONLY
    penalty_scale: Literal["per_example", "batch_mean"] = "per_example"
    examples_per_mean: int | None = None
    needs_input_gradients = True

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.penalty_scale not in ("per_example", "batch_mean"):
            raise InputError(
                f'penalty_scale must be "per_example" or "batch_mean", got {self.penalty_scale!r}'
            )
        if self.examples_per_mean is not None and self.examples_per_mean < 1:
            raise InputError(f"examples_per_mean must be at least 1, got {self.examples_per_mean}")

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        squares = tf.reduce_sum(tf.square(flatten(batch.loss_gradients)), axis=1)
        penalty = self.weight * tf.reduce_mean(squares)
        if self.penalty_scale == "batch_mean":
            count = self.examples_per_mean or tf.shape(batch.x)[0] * replica_count()
            penalty /= tf.square(tf.cast(count, penalty.dtype))
        return penalty


@dataclasses.dataclass(frozen=True)
class AlignmentPenalty(Term):
    """lambda * mean_i (||x||^2 ||grad Psi||^2 - <x, grad Psi>^2), Psi the label's logit.

    Not negative by Cauchy-Schwarz, and zero where the saliency map is parallel to the input.

    Source: Etmann 2019, outlook.
    """

    weight: float
    needs_input_gradients = True

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        gradient = batch.logit_gradients
        products = inner(batch.x, batch.x) * inner(gradient, gradient)
        return self.weight * tf.reduce_mean(products - tf.square(inner(batch.x, gradient)))
