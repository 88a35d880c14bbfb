"""The loss at the fast gradient sign's image, beside the loss itself (Goodfellow 2015)."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfrobust.arguments import as_positive, as_range
from tfrobust.norms import clip_to_range
from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["FastGradientSignLoss"]


@dataclasses.dataclass(frozen=True)
class FastGradientSignLoss(Term):
    """weight * mean_i L(x_i + epsilon * sign(grad_x L(x_i))).

    The objective alpha * L(x) + (1 - alpha) * L(x + epsilon * sign(grad_x L(x))) is

        CrossEntropy(alpha) + FastGradientSignLoss(epsilon, weight=1 - alpha)

    with alpha .5 in Goodfellow 2015. Every example counts with both images, while
    `AdversarialTraining(mix=.5)` trains on one of them. The sign is taken as constant: its
    derivative is 0 where it has one. In training mode batch normalisation's moving averages are
    updated by both images, and dropout draws anew for the second.

    Args:
        epsilon: l-infinity norm of the step, in the network's input units.
        weight: 1 - alpha.
        value_range: that images are clipped to; None leaves them as they are.

    Source: Goodfellow, Shlens and Szegedy 2015, section 6; Peck 2017, section 2.6.3.
    """

    epsilon: float
    _: dataclasses.KW_ONLY
    weight: float = 0.5
    value_range: tuple[float, float] | None = None
    needs_input_gradients = True

    def __post_init__(self) -> None:
        as_positive("epsilon", self.epsilon)
        check_weight(self.weight)
        if self.value_range is not None:
            object.__setattr__(self, "value_range", as_range(self.value_range))

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        images = batch.x + self.epsilon * tf.sign(tf.stop_gradient(batch.loss_gradients))
        if self.value_range is not None:
            images = clip_to_range(images, self.value_range)
        logits = tf.cast(batch.model(images, training=batch.training), batch.x.dtype)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits)
        return self.weight * tf.reduce_mean(losses)
