"""Linear layers in the certified rules: norms, rows, absolute weights and adjoints."""

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
from tfrobust.bounds.operations.base import Operation, over_margins
from tfrobust.bounds.operations.rounding import (
    SMALLEST,
    gamma,
    or_infinite,
    rounded_up,
    underflow,
)
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

    @property
    def backward_terms(self) -> int:
        return self.adjoint_terms + 2 if self.adjoint_terms else 0

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
    def product(self, x: tf.Tensor, of: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """of(A) x, for `of` elementwise: (batch, *input) -> (batch, *output), in x's precision."""

    def absolute(self, x: tf.Tensor) -> tf.Tensor:
        """|A| x for x >= 0."""
        return self.product(x, tf.abs)

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

    def exact_adjoint(
        self, input_shape: tuple[int, ...], cotangent: tf.Tensor, errors: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """A^T applied to each (batch, *output) a in double precision, and bounds of errors.

        For a with errors E they are |A|^T (E + gamma |a|), with double precision's gamma.
        """
        like = tf.zeros((1, *input_shape), tf.float64)
        relative = gamma(self.adjoint_terms + 2, 2.0**-53)
        total = errors + relative * tf.abs(cotangent)
        return (
            _adjoint(lambda x: self.product(x, tf.identity), like, cotangent),
            # 1e-290: what underflows; the sums of errors are rounded too
            1.01 * _adjoint(self.absolute, like, total) + 1e-290,
        )

    def relax_backward(self, inputs, cotangent):
        # <a, A D> = <A^T a, D>, without loss
        input_cotangent = over_margins(lambda a: self.adjoint(inputs.values[0], a), cotangent)
        return [input_cotangent], tf.zeros(tf.shape(cotangent)[:2], cotangent.dtype)

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        # |A| (E + gamma (|x| + e) + 2^-126) + gamma |b| with the input's error E; n products and
        # the bias take gamma_(n+1), and gamma_(n+2) leaves one rounding to spare
        relative = gamma(self.terms + 2)
        largest = tf.abs(values[0]) + elementwise[0]
        error = self.absolute(input_errors[0] + relative * largest + SMALLEST)
        error = rounded_up(error + relative * self.absolute_bias(), self.terms + 8)
        size = norms.per_example(norms.norm(largest, math.inf), error)
        return or_infinite(error + underflow(self.terms) * (1 + size), self.terms)


class Dense(Affine):
    """Dense, without its activation."""

    @property
    def terms(self):
        return int(self.layer.kernel.shape[0])

    @property
    def adjoint_terms(self):
        return int(self.layer.kernel.shape[1])

    def product(self, x, of):
        return tf.linalg.matmul(x, of(_weights(self.layer.kernel, x)))

    def absolute_norm(self):
        return _schur_bound(self.layer.kernel, columns=(0,), rows=(1,))

    def row_norms(self):
        return norms.root_of_squares(tf.convert_to_tensor(self.layer.kernel), axis=0)


class _Convolution(Affine):
    @property
    def rounding_is_proved(self) -> bool:
        # cuDNN may choose Winograd's algorithm or a Fourier transform, which sum other products
        return not tf.config.list_logical_devices("GPU")


class Convolutional(_Convolution):
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

    def product(self, x, of):
        layer, padding = self.layer, self.layer.padding
        convolve = keras.ops.depthwise_conv if self.depthwise else keras.ops.conv
        if padding == "causal":
            before = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
            x, padding = tf.pad(x, [(0, 0), (before, 0), (0, 0)]), "valid"
        return convolve(
            x,
            of(_weights(layer.kernel, x)),
            strides=tuple(layer.strides),
            padding=padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    def absolute_norm(self):
        taps = tuple(range(len(self.layer.kernel.shape) - 2))
        if self.depthwise:
            return _schur_bound(self.layer.kernel, columns=taps, rows=(*taps, len(taps) + 1))
        # with groups an input meets some of the outputs only
        return _schur_bound(
            self.layer.kernel, columns=(*taps, len(taps)), rows=(*taps, len(taps) + 1)
        )

    def row_norms(self):
        kernel = tf.convert_to_tensor(self.layer.kernel)
        taps = list(range(len(kernel.shape) - 2))
        if self.depthwise:  # (taps, channels, multiplier), one channel's outputs side by side
            return tf.reshape(norms.root_of_squares(kernel, axis=taps), [-1])
        return norms.root_of_squares(kernel, axis=[*taps, len(taps)])


class Separable(_Convolution):
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

    def product(self, x, of):
        layer = self.layer
        return keras.ops.separable_conv(
            x,
            of(_weights(layer.depthwise_kernel, x)),
            of(_weights(layer.pointwise_kernel, x)),
            strides=tuple(layer.strides),
            padding=layer.padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    def absolute_norm(self):
        first, second = self.layer.depthwise_kernel, self.layer.pointwise_kernel
        taps = tuple(range(len(first.shape) - 2))
        return _schur_bound(first, columns=taps, rows=(*taps, len(taps) + 1)) * _schur_bound(
            second, columns=(*taps, len(taps)), rows=(*taps, len(taps) + 1)
        )

    def row_norms(self):
        # of the products' absolute values, in which nothing cancels
        first = tf.abs(tf.convert_to_tensor(self.layer.depthwise_kernel))
        second = tf.abs(tf.reshape(self.layer.pointwise_kernel, (*first.shape[-2:], -1)))
        kernel = tf.einsum("...cm,cmo->...co", first, second)
        return norms.root_of_squares(kernel, axis=list(range(len(kernel.shape) - 1)))


class Scaling(Affine):
    """Each element times a factor: batch normalization, Rescaling, Normalization."""

    terms = adjoint_terms = 8

    def __init__(
        self, layer, operator_norm, rule, factors: Callable[[tf.DType], tuple[tf.Tensor, tf.Tensor]]
    ):
        super().__init__(layer, operator_norm, rule)
        self.factors = factors  # (scale, |offset|), of shapes that broadcast

    def product(self, x, of):
        return x * of(self.factors(x.dtype)[0])

    def row_norms(self):
        return tf.abs(self.factors(tf.float32)[0])

    def absolute_bias(self):
        return self.factors(tf.float32)[1]


class Permutation(Affine):
    """Elements reordered, left out or padded with zeros, none changed.

    Flatten, reshape, crop, zero padding, and dropout in inference mode.
    """

    terms = adjoint_terms = 0

    def __init__(self, layer, rule: str):
        super().__init__(layer, lambda: 1.0, rule)

    def product(self, x, of):
        # `call` does not cast
        return self.layer.call(x) if isinstance(self.layer, keras.layers.Layer) else self.layer(x)

    def row_norms(self):
        return tf.constant(1.0, tf.float32)

    def elementwise_bound(self, inputs):
        return self.apply([inputs.elementwise[0] * tf.ones_like(inputs.values[0])])

    def rounding_error(self, values, elementwise, output, output_elementwise, input_errors):
        return self.apply([input_errors[0] * tf.ones_like(values[0])])


def _weights(weights: Any, x: tf.Tensor) -> tf.Tensor:
    """Weights in the precision of x."""
    return tf.cast(tf.convert_to_tensor(weights), x.dtype)


def _schur_bound(weights: Any, columns: tuple[int, ...], rows: tuple[int, ...]) -> float:
    """|| |A| || <= sqrt(max_i sum_j |A_ij| max_j sum_i |A_ij|), Schur's test, in double precision.

    Args:
        weights: kernel.
        columns: its axes over which an output sums; of one row of A.
        rows: its axes over which an input is used; of one column of A.
    """
    absolute = np.abs(np.asarray(weights, np.float64))
    largest = [float(absolute.sum(axis=axes).max()) for axes in (columns, rows)]
    return math.sqrt(largest[0]) * math.sqrt(largest[1]) * (1 + 1e-9)


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


def batch_normalization_factors(layer: Any, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """s = gamma / sqrt(variance + epsilon) and |mean s| + |beta|, in inference mode."""
    mean, variance = (
        tf.cast(tf.convert_to_tensor(each), dtype)
        for each in (layer.moving_mean, layer.moving_variance)
    )
    scale = 1 / tf.sqrt(variance + tf.cast(layer.epsilon, dtype))
    if layer.scale:
        scale = scale * tf.cast(tf.convert_to_tensor(layer.gamma), dtype)
    offset = tf.abs(mean * scale)
    if layer.center:
        offset = offset + tf.abs(tf.cast(tf.convert_to_tensor(layer.beta), dtype))
    return scale, offset


def rescaling_factors(layer: Any, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and |offset| of `Rescaling` and `Normalization`."""
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = (np.asarray(each, np.float32) for each in (layer.scale, layer.offset))
    else:
        variance, mean = (np.asarray(each, np.float64) for each in (layer.variance, layer.mean))
        scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        offset = mean * scale
    return tf.cast(scale, dtype), tf.cast(np.abs(offset), dtype)
