"""Cross-entropy and weight decay, the terms without input gradients."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["CrossEntropy", "WeightDecay"]


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Term):
    """weight * mean over the batch of the cross-entropy L_i of logits and labels."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        return self.weight * tf.reduce_mean(batch.losses)


@dataclasses.dataclass(frozen=True)
class WeightDecay(Term):
    """weight * sum of squares of all trainable weights, biases included (Etmann 2019's code)."""

    weight: float

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        squares = [tf.reduce_sum(tf.square(v.value)) for v in batch.model.trainable_variables]
        return self.weight * tf.add_n(squares)
