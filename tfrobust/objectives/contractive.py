"""Small Jacobians of every hidden layer (Gu and Rigazio 2014; Peck 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrobust.bounds import Step, graph_steps
from tfrobust.errors import InputError
from tfrobust.norms import flatten
from tfrobust.objectives.base import Term, check_weight
from tfrobust.objectives.forward_pass import ForwardPass

__all__ = ["ContractivePenalty"]

layers = keras.layers
_ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
# their Jacobians do not depend on weights
_WITHOUT_WEIGHTS = (
    *(layers.Flatten, layers.Reshape, layers.Dropout, layers.Identity, layers.ZeroPadding2D),
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.Rescaling),
    *(layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D),
)


@dataclasses.dataclass(frozen=True)
class ContractivePenalty(Term):
    """weight * mean_i sum_j ||dh_j / dh_{j-1}||_F over the hidden layers j, at the example x_i.

    A layer is a dense layer or a convolution with the activation behind it; the last dense layer,
    the linear classifier, is not penalised, nor are layers without weights. Layers are taken in
    inference mode: dropout is off.

    Args:
        weight: lambda_j, one for all layers or one per layer.

    Raises (when called):
        InputError: the model is not a chain of such layers, or has another number of them.

    Source: Gu and Rigazio 2014; Peck 2017, section 2.6.1, and 5.4, which recommends it for the
    layers at the end of a convolutional network.
    """

    weight: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if isinstance(self.weight, (list, tuple)):
            object.__setattr__(self, "weight", tuple(self.weight))
            for weight in self.weight:
                check_weight(weight)
        else:
            check_weight(self.weight)

    def __call__(self, batch: ForwardPass) -> tf.Tensor:
        norms = jacobian_norms(batch.model, batch.x)
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,) * len(norms)
        if len(weights) != len(norms):
            raise InputError(
                f"{len(weights)} weights of the contractive penalty for {len(norms)} hidden layers"
            )
        penalties = [
            weight * tf.reduce_mean(norm) for weight, norm in zip(weights, norms, strict=True)
        ]
        return tf.cast(tf.add_n(penalties), batch.x.dtype)


def jacobian_norms(logits: keras.Model, x: tf.Tensor) -> list[tf.Tensor]:
    """In a graph: ||dh_j / dh_{j-1}||_F of each hidden layer, (batch,) each, differentiable.

    Raises:
        InputError: a layer for which it is not known, or no hidden layer.
    """
    steps = graph_steps(logits)
    for index, step in enumerate(steps):
        if step.inputs != (index - 1,):
            raise InputError(f"the contractive penalty is for chains: {step.name!r} is not in one")
    hidden = list(steps)
    while hidden and not _has_weights(hidden[-1]):
        hidden.pop()
    hidden = hidden[:-1]  # without the linear classifier
    norms, values, index = [], x, 0
    while index < len(hidden):
        step = hidden[index]
        if _has_weights(step):
            squares = _squared_rows(step, values)
            values = step.function(values)
            follows = index + 1 < len(hidden) and _is_activation(hidden[index + 1])
            if follows:
                index += 1
                values, slopes = _with_slopes(hidden[index].function, values)
                squares *= tf.square(slopes)
            norms.append(_root(tf.reduce_sum(flatten(squares + tf.zeros_like(values)), axis=1)))
        elif _is_activation(step) or type(step.layer) in _WITHOUT_WEIGHTS:
            values = step.function(values)
        else:
            raise InputError(
                f"the contractive penalty knows dense layers, Conv2D and activations, and layers "
                f"without weights, not {step.kind} ({step.name!r})"
            )
        index += 1
    if not norms:
        raise InputError("the contractive penalty needs a hidden layer: the model is linear")
    return norms


def _has_weights(step: Step) -> bool:
    return type(step.layer) in (layers.Dense, layers.Conv2D)


def _is_activation(step: Step) -> bool:
    elementwise = not isinstance(step.layer, layers.Layer) or isinstance(step.layer, _ACTIVATIONS)
    return elementwise and step.kind != "softmax"


def _squared_rows(step: Step, values: tf.Tensor) -> tf.Tensor:
    """Sum of squares of the weights that each output takes, to be broadcast to the outputs."""
    kernel: Any = tf.square(tf.convert_to_tensor(step.layer.kernel))
    if type(step.layer) is layers.Dense:
        return tf.reduce_sum(kernel, axis=0)
    layer = step.layer
    if layer.groups != 1 or layer.data_format != "channels_last":
        raise InputError(f"the contractive penalty does not know the settings of {step.name!r}")
    # at the border the padding's weights are not taken
    return keras.ops.conv(
        tf.ones_like(values[:1]),
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
    )


def _with_slopes(function: Callable[..., Any], values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """An elementwise function's values and derivatives."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        result = function(values)
    return result, tape.gradient(result, values)


def _root(squares: tf.Tensor) -> tf.Tensor:
    """Square root with derivative 0 at 0, where a layer is saturated."""
    positive = squares > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)
