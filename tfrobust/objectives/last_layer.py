"""Robustness of the last dense layer (Peck 2017)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import keras
import tensorflow as tf

from tfrobust.errors import InputError
from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["LastLayerRobustness"]


@dataclasses.dataclass(frozen=True)
class LastLayerRobustness(Term):
    """-weight * mean_i delta(h_i), delta the distance of the last layer's input to a boundary.

    delta = min over j of |z_f - z_j| / ||w_f - w_j||, f the predicted class and w the last layer's
    columns: (3.12), never negative, so that it also rewards confident mistakes. Minimising the term
    increases delta.

    Args:
        weight: l.
        of: "predicted", the class of (3.12), or "label": min over j of (z_y - z_j) / ||w_y - w_j||
            for the label y, negative where the example is misclassified.

    Raises (when called):
        ValueError: the model does not end in a dense layer.

    Source: Peck 2017, eq. (3.12) and section 4.4.
    """

    weight: float
    _: dataclasses.KW_ONLY
    of: Literal["predicted", "label"] = "predicted"

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.of not in ("predicted", "label"):
            raise InputError(f'of must be "predicted" or "label", got {self.of!r}')

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
        classes = batch.labels
        if self.of == "predicted":
            classes = tf.argmax(batch.logits, axis=1, output_type=tf.int32)
        own_logits = tf.gather(batch.logits, classes, batch_dims=1)[:, None]
        delta = (own_logits - batch.logits) / tf.gather(distances, classes)
        others = tf.one_hot(classes, kernel.shape[0], on_value=False, off_value=True)
        delta = tf.where(others, delta, delta.dtype.max)
        return -self.weight * tf.reduce_mean(tf.reduce_min(delta, axis=1))
