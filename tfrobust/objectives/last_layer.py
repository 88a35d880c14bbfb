"""Robustness of the last dense layer (Peck 2017)."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from tfrobust.errors import InputError
from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["LastLayerRobustness"]


@dataclasses.dataclass(frozen=True)
class LastLayerRobustness(Term):
    """-weight * mean_i delta(h_i), delta the distance of the last layer's input to a boundary.

    delta = min over j of (z_y - z_j) / ||w_y - w_j||, y the label and w the last layer's columns:
    negative where the example is misclassified. Minimising the term increases delta.

    Raises (when called):
        ValueError: the model does not end in a dense layer.

    Source: Peck 2017, Theorem 3.6 and section 4.5.
    """

    weight: float

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        last = batch.model.layers[-1] if getattr(batch.model, "layers", None) else None
        last = getattr(last, "layer", last)  # a softmax was left out
        if not isinstance(last, keras.layers.Dense):
            raise InputError(
                "the last layer's robustness needs a model that ends in a dense layer, got "
                f"{type(last).__name__}"
            )
        kernel = tf.transpose(tf.convert_to_tensor(last.kernel))
        squares = tf.reduce_sum(tf.square(kernel[:, None] - kernel[None]), axis=2)
        # 1 on the diagonal, which is not used: a root has no derivative at zero
        distances = tf.sqrt(squares + tf.eye(kernel.shape[0], dtype=squares.dtype))
        label_logits = tf.gather(batch.logits, batch.labels, batch_dims=1)[:, None]
        delta = (label_logits - batch.logits) / tf.gather(distances, batch.labels)
        others = tf.one_hot(batch.labels, kernel.shape[0], on_value=False, off_value=True)
        delta = tf.where(others, delta, delta.dtype.max)
        return -self.weight * tf.reduce_mean(tf.reduce_min(delta, axis=1))
