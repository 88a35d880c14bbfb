"""Linear layers in the certified rules: norms, rows, absolute weights and adjoints.

Sums of products in single precision follow the standard model (Higham 2002, chapter 3): with
u = 2^-24 and gamma_n = n u / (1 - n u), a sum of n products a_i x_i computed in any order has an
error of at most gamma_n sum_i |a_i| |x_i|.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import norms
from tfrobust.bounds.operations.base import UNIT_ROUNDOFF, Operation, over_margins
from tfrobust.classifier import WithoutActivation, takes_training

__all__ = [
    "Affine",
    "Convolutional",
    "Dense",
    "Permutation",
    "Scaling",
    "Separable",
]


class Affine(Operation):
    """A layer x -> A x + b, without its activation.

    Attributes:
        layer: the Keras layer.
        operator_norm: returns an upper bound of ||A||, from `operator_norms`.
        terms: products in the sum of one output, at most.
        adjoint_terms: products in the sum of one input of the adjoint, at most.
    """

    linear = True
    terms = 1
    adjoint_terms = 1

    def __init__(self, layer: Any, operator_norm: Callable[[], float], rule: str):
        self.layer, self.operator_norm, self.rule = layer, operator_norm, rule
        fused = getattr(layer, "activation", None) not in (None, keras.activations.linear)
        trains = not fused and isinstance(layer, keras.layers.Layer) and takes_training(layer)
        bare = WithoutActivation(layer) if fused else layer
        self.function = functools.partial(bare, training=False) if trains else bare

    def lipschitz_constant(self) -> float:
        return self.operator_norm()

    def apply(self, values):
        return self.function(values[0])

    @abc.abstractmethod
    def absolute(self, x: tf.Tensor) -> tf.Tensor:
        """|A| x for x >= 0: (batch, *input) -> (batch, *output)."""

    @abc.abstractmethod
    def row_norms(self) -> tf.Tensor:
        """||a_i||_2 of each row of A, or an upper bound; broadcasts to (batch, *output)."""

    def absolute_bias(self) -> Any:
        """|b|, of a shape that broadcasts."""
        bias = getattr(self.layer, "bias", None)
        return 0.0 if bias is None else tf.abs(tf.convert_to_tensor(bias))

    def elementwise_bound(self, inputs):
        # |<a_i, D>| <= min(||a_i|| l, <|a_i|, e>), by Cauchy-Schwarz and elementwise
        box = self.absolute(inputs.elementwise[0] * tf.ones_like(inputs.values[0]))
        return tf.minimum(norms.per_example(inputs.l2[0], box) * self.row_norms(), box)

    def adjoint(self, like: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
        """A^T applied to each (batch, *output)."""
        return _adjoint(lambda x: self.apply([x]), like, cotangent)

    def adjoint_error(self, like: tf.Tensor, cotangent: tf.Tensor, errors: tf.Tensor) -> tf.Tensor:
        """Bound of the rounding error of `adjoint` for a cotangent a with errors E of its own.

        |A|^T (E + gamma |a|).
        """
        total = errors + _gamma(self.adjoint_terms + 2) * tf.abs(cotangent)
        # these sums are rounded to single precision too
        return 1.01 * _adjoint(self.absolute, like, total)

    def relax_backward(self, inputs, cotangent):
        # <a, A D> = <A^T a, D>, without loss
        input_cotangent = over_margins(lambda a: self.adjoint(inputs.values[0], a), cotangent)
        return [input_cotangent], tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # |A| (E + gamma (|x| + e)) + gamma |b| with the input's error E; n products and the bias
        # take gamma_(n+1), and gamma_(n+2) leaves one rounding to spare
        gamma = _gamma(self.terms + 2)
        largest = tf.abs(values[0]) + elementwise[0]
        return self.absolute(input_errors[0] + gamma * largest) + gamma * self.absolute_bias()


class Dense(Affine):
    """Dense, without its activation."""

    @property
    def terms(self):
        return int(self.layer.kernel.shape[0])

    @property
    def adjoint_terms(self):
        return int(self.layer.kernel.shape[1])

    def absolute(self, x):
        return tf.linalg.matmul(x, tf.abs(tf.convert_to_tensor(self.layer.kernel)))

    def row_norms(self):
        return tf.sqrt(tf.reduce_sum(tf.square(tf.convert_to_tensor(self.layer.kernel)), axis=0))


class Convolutional(Affine):
    """Convolutions and depthwise convolutions of one or two dimensions."""

    @property
    def depthwise(self) -> bool:
        return isinstance(self.layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)

    @property
    def terms(self):
        shape = self.layer.kernel.shape
        return math.prod(shape[:-2]) if self.depthwise else math.prod(shape[:-1])

    @property
    def adjoint_terms(self):
        shape = self.layer.kernel.shape
        return math.prod(shape[:-2]) * shape[-1]

    def absolute(self, x):
        layer, padding = self.layer, self.layer.padding
        convolve = keras.ops.depthwise_conv if self.depthwise else keras.ops.conv
        if padding == "causal":
            before = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
            x, padding = tf.pad(x, [(0, 0), (before, 0), (0, 0)]), "valid"
        return convolve(
            x,
            tf.abs(tf.convert_to_tensor(layer.kernel)),
            strides=tuple(layer.strides),
            padding=padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    def row_norms(self):
        squares = tf.square(tf.convert_to_tensor(self.layer.kernel))
        if self.depthwise:  # (taps, channels, multiplier), one channel's outputs side by side
            return tf.reshape(
                tf.sqrt(tf.reduce_sum(squares, axis=list(range(len(squares.shape) - 2)))), [-1]
            )
        return tf.sqrt(tf.reduce_sum(squares, axis=list(range(len(squares.shape) - 1))))


class Separable(Affine):
    """A depthwise convolution followed by a pointwise (1x1) one."""

    @property
    def terms(self):
        return math.prod(self.layer.depthwise_kernel.shape[:-2]) + int(
            self.layer.pointwise_kernel.shape[-2]
        )

    @property
    def adjoint_terms(self):
        first = self.layer.depthwise_kernel.shape
        return math.prod(first[:-2]) * first[-1] + int(self.layer.pointwise_kernel.shape[-1])

    def absolute(self, x):
        layer = self.layer
        return keras.ops.separable_conv(
            x,
            tf.abs(tf.convert_to_tensor(layer.depthwise_kernel)),
            tf.abs(tf.convert_to_tensor(layer.pointwise_kernel)),
            strides=tuple(layer.strides),
            padding=layer.padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    def row_norms(self):
        first = tf.convert_to_tensor(self.layer.depthwise_kernel)
        second = tf.reshape(self.layer.pointwise_kernel, (*first.shape[-2:], -1))
        squares = tf.square(tf.einsum("...cm,cmo->...co", first, second))
        return tf.sqrt(tf.reduce_sum(squares, axis=list(range(len(squares.shape) - 1))))


class Scaling(Affine):
    """Each element times a factor: batch normalization, Rescaling, Normalization."""

    terms = adjoint_terms = 8

    def __init__(self, layer, operator_norm, rule, factors: Callable[[], tuple[Any, Any]]):
        super().__init__(layer, operator_norm, rule)
        self.factors = factors  # (scale, |offset|), of shapes that broadcast

    def absolute(self, x):
        return x * tf.abs(self.factors()[0])

    def row_norms(self):
        return tf.abs(self.factors()[0])

    def absolute_bias(self):
        return self.factors()[1]


class Permutation(Affine):
    """Elements reordered, left out or padded with zeros, none changed.

    Flatten, reshape, crop, zero padding, and dropout in inference mode.
    """

    terms = adjoint_terms = 0

    def __init__(self, layer, rule: str):
        super().__init__(layer, lambda: 1.0, rule)

    def absolute(self, x):
        return self.apply([x])

    def row_norms(self):
        return tf.constant(1.0, tf.float32)

    def elementwise_bound(self, inputs):
        return self.apply([inputs.elementwise[0] * tf.ones_like(inputs.values[0])])

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        return self.apply([input_errors[0] * tf.ones_like(values[0])])


def _gamma(count: int) -> float:
    """gamma_n = n u / (1 - n u), the largest relative error of n successive roundings."""
    return count * UNIT_ROUNDOFF / (1 - count * UNIT_ROUNDOFF)


def _adjoint(
    linear: Callable[[tf.Tensor], tf.Tensor], like: tf.Tensor, cotangent: tf.Tensor
) -> tf.Tensor:
    """A^T applied to each row of the cotangent, as the gradient of <A x, cotangent> at x = 0."""
    count = tf.shape(cotangent)[0]
    zeros = tf.zeros(tf.concat([[count], like.shape[1:]], 0), like.dtype)
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        output = linear(zeros)
    return tape.gradient(output, zeros, cotangent)


def batch_normalization_factors(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """s = gamma / sqrt(variance + epsilon) and |mean s| + |beta|, in inference mode."""
    scale = 1 / tf.sqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma
    offset = tf.abs(tf.convert_to_tensor(layer.moving_mean) * scale)
    if layer.center:
        offset = offset + tf.abs(tf.convert_to_tensor(layer.beta))
    return scale, offset


def rescaling_factors(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and |offset| of `Rescaling` and `Normalization`."""
    if isinstance(layer, keras.layers.Rescaling):
        scale = tf.convert_to_tensor(np.asarray(layer.scale, np.float32))
        return scale, tf.abs(tf.convert_to_tensor(np.asarray(layer.offset, np.float32)))
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance)), keras.config.epsilon())
    scale = 1 / deviation
    return (
        tf.convert_to_tensor(scale.astype(np.float32)),
        tf.convert_to_tensor(np.abs(np.asarray(layer.mean) * scale).astype(np.float32)),
    )
