"""Linear layers as the certified rules see them: norms, rows, magnitudes and adjoints."""

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
    "Scaling",
    "Separable",
    "Shuffle",
]


class Affine(Operation):
    """A layer x -> A x + b; its activation is left out.

    Attributes:
        layer: the Keras layer.
        norm: an upper bound of A's norm, from `operator_norms`.
        terms: products that one output sums up.
        adjoint_terms: products that one input sums up in the adjoint.
    """

    linear = True
    terms = 1
    adjoint_terms = 1

    def __init__(self, layer: Any, norm: Callable[[], float], rule: str):
        self.layer, self.norm, self.rule = layer, norm, rule
        fused = getattr(layer, "activation", None) not in (None, keras.activations.linear)
        trains = not fused and isinstance(layer, keras.layers.Layer) and takes_training(layer)
        bare = WithoutActivation(layer) if fused else layer
        self.function = functools.partial(bare, training=False) if trains else bare

    def constant(self) -> float:
        return self.norm()

    def apply(self, values):
        return self.function(values[0])

    @abc.abstractmethod
    def magnitude(self, x: tf.Tensor) -> tf.Tensor:
        """|A| x for x >= 0: (batch, *input) -> (batch, *output)."""

    @abc.abstractmethod
    def rows(self) -> tf.Tensor:
        """The l2 norm of each row of A, or more; of a shape that broadcasts to (batch, *output)."""

    def offset(self) -> Any:
        """|b|, of a shape that broadcasts."""
        bias = getattr(self.layer, "bias", None)
        return 0.0 if bias is None else tf.abs(tf.convert_to_tensor(bias))

    def spread(self, values, changes, reaches, constant):
        # a row meets the change as a whole (Cauchy-Schwarz), or element by element
        box = self.magnitude(changes[0] * tf.ones_like(values[0]))
        return tf.minimum(norms.per_example(reaches[0], box) * self.rows(), box)

    def adjoint(self, like: tf.Tensor, cotangent: tf.Tensor) -> tf.Tensor:
        """A^T applied to each (batch, *output)."""
        return _adjoint(lambda x: self.apply([x]), like, cotangent)

    def adjoint_error(self, like: tf.Tensor, cotangent: tf.Tensor, errors: tf.Tensor) -> tf.Tensor:
        """Bound of what is wrong with `adjoint` in single precision, as is the cotangent."""
        step = _roundings(self.adjoint_terms + 2)
        lost = errors + step * tf.abs(cotangent)
        # these sums are in single precision too
        return 1.01 * _adjoint(self.magnitude, like, lost)

    def pull(self, values, changes, reaches, constant, cotangent):
        pulled = over_margins(lambda rows: self.adjoint(values[0], rows), cotangent)
        return [pulled], tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)

    def rounding(self, values, changes, output, change, errors):
        # the standard model: a sum of n products errs by at most n + 1 roundings of each
        step = _roundings(self.terms + 2)
        largest = tf.abs(values[0]) + changes[0]
        return self.magnitude(errors[0] + step * largest) + step * self.offset()


class Dense(Affine):
    """Dense, without its activation."""

    @property
    def terms(self):
        return int(self.layer.kernel.shape[0])

    @property
    def adjoint_terms(self):
        return int(self.layer.kernel.shape[1])

    def magnitude(self, x):
        return tf.linalg.matmul(x, tf.abs(tf.convert_to_tensor(self.layer.kernel)))

    def rows(self):
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

    def magnitude(self, x):
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

    def rows(self):
        squares = tf.square(tf.convert_to_tensor(self.layer.kernel))
        if self.depthwise:  # (taps, channels, multiplier), the outputs of a channel together
            return tf.reshape(
                tf.sqrt(tf.reduce_sum(squares, axis=list(range(len(squares.shape) - 2)))), [-1]
            )
        return tf.sqrt(tf.reduce_sum(squares, axis=list(range(len(squares.shape) - 1))))


class Separable(Affine):
    """A depthwise convolution and one of size one behind it."""

    @property
    def terms(self):
        return math.prod(self.layer.depthwise_kernel.shape[:-2]) + int(
            self.layer.pointwise_kernel.shape[-2]
        )

    @property
    def adjoint_terms(self):
        first = self.layer.depthwise_kernel.shape
        return math.prod(first[:-2]) * first[-1] + int(self.layer.pointwise_kernel.shape[-1])

    def magnitude(self, x):
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

    def rows(self):
        first = tf.convert_to_tensor(self.layer.depthwise_kernel)
        second = tf.reshape(self.layer.pointwise_kernel, (*first.shape[-2:], -1))
        together = tf.square(tf.einsum("...cm,cmo->...co", first, second))
        return tf.sqrt(tf.reduce_sum(together, axis=list(range(len(together.shape) - 1))))


class Scaling(Affine):
    """Each element times a number: batch normalisation, Rescaling, Normalization."""

    terms = adjoint_terms = 8

    def __init__(self, layer, norm, rule, factors: Callable[[], tuple[Any, Any]]):
        super().__init__(layer, norm, rule)
        self.factors = factors  # (scale, |offset|), of shapes that broadcast

    def magnitude(self, x):
        return x * tf.abs(self.factors()[0])

    def rows(self):
        return tf.abs(self.factors()[0])

    def offset(self):
        return self.factors()[1]


class Shuffle(Affine):
    """Elements in another order or left out, none changed: flatten, reshape, crop, dropout."""

    terms = adjoint_terms = 0

    def __init__(self, layer, rule: str):
        super().__init__(layer, lambda: 1.0, rule)

    def magnitude(self, x):
        return self.apply([x])

    def rows(self):
        return tf.constant(1.0, tf.float32)

    def spread(self, values, changes, reaches, constant):
        return self.apply([changes[0] * tf.ones_like(values[0])])

    def rounding(self, values, changes, output, change, errors):
        return self.spread(values, errors, None, None)


def _roundings(count: int) -> float:
    """gamma_n, what n roundings one after another come to at most."""
    return count * UNIT_ROUNDOFF / (1 - count * UNIT_ROUNDOFF)


def _adjoint(
    linear: Callable[[tf.Tensor], tf.Tensor], like: tf.Tensor, cotangent: tf.Tensor
) -> tf.Tensor:
    count = tf.shape(cotangent)[0]
    zeros = tf.zeros(tf.concat([[count], like.shape[1:]], 0), like.dtype)
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        output = linear(zeros)
    return tape.gradient(output, zeros, cotangent)


def batch_normalisation_factors(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale, and the magnitudes that its offset is summed from, in inference mode."""
    scale = 1 / tf.sqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma
    offset = tf.abs(tf.convert_to_tensor(layer.moving_mean) * scale)
    if layer.center:
        offset = offset + tf.abs(tf.convert_to_tensor(layer.beta))
    return scale, offset


def rescaling_factors(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Of `Rescaling` and `Normalization`."""
    if isinstance(layer, keras.layers.Rescaling):
        scale = tf.convert_to_tensor(np.asarray(layer.scale, np.float32))
        return scale, tf.abs(tf.convert_to_tensor(np.asarray(layer.offset, np.float32)))
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance)), keras.config.epsilon())
    scale = 1 / deviation
    return (
        tf.convert_to_tensor(scale.astype(np.float32)),
        tf.convert_to_tensor(np.abs(np.asarray(layer.mean) * scale).astype(np.float32)),
    )
