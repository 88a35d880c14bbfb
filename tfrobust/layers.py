"""Layers of the papers' networks, all differentiable twice."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count, as_not_negative, as_positive
from tfrobust.errors import InputError

__all__ = [
    "FrozenBatchNormalization",
    "LocalResponseNormalization",
    "LpPooling2D",
    "SoftmaxAsLogits",
]


@keras.saving.register_keras_serializable("tfrobust")
class FrozenBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by its moving statistics also in training; these are never updated.

    gamma and beta are trained as usual: the option learning_phase=0 of Etmann 2019's released code.
    Weights, their names and settings are those of `BatchNormalization`.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(inputs, training=False, mask=mask)


@keras.saving.register_keras_serializable("tfrobust")
class LocalResponseNormalization(keras.layers.Layer):
    """Each value divided by a power of the sum of squares over neighbouring channels.

        y_c = x_c / (bias + alpha * sum_{|j - c| <= depth_radius} x_j^2)^beta

    The sum ends at the first and the last channel, and alpha is *not* divided by the number of
    channels in it. The defaults are k, n = 2 * depth_radius + 1, alpha and beta of Krizhevsky 2012,
    as in Peck 2017. The values are those of `tf.nn.local_response_normalization`, which has
    no second gradient; this layer can be differentiated any number of times.

    Args:
        depth_radius: neighbouring channels on each side, at least 0.
        bias: positive, so that nothing is divided by zero.
        alpha: at least 0.
        beta: at least 0.

    Inputs are (batch, ..., channels), of rank 2 at least; outputs have the same shape.

    Raises:
        InputError: a setting is out of range, or the number of channels is unknown.
    """

    def __init__(
        self,
        depth_radius: int = 2,
        bias: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.depth_radius = as_count("depth_radius", depth_radius, 0)
        self.bias = as_positive("bias", bias)
        self.alpha = as_not_negative("alpha", alpha)
        self.beta = as_not_negative("beta", beta)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise InputError(
                f"{self.name} takes (batch, ..., channels) with a known number of channels, got "
                f"{input_shape}"
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        x = _wide(inputs)
        channel = np.arange(x.shape[-1])
        band = np.abs(channel[:, None] - channel) <= self.depth_radius
        # a product with a band matrix; differences of cumulative sums would suffer cancellation
        sums = tf.tensordot(tf.square(x), tf.constant(band, x.dtype), axes=1)
        sums = tf.ensure_shape(sums, x.shape)
        return tf.cast(x * _positive_power(self.bias + self.alpha * sums, -self.beta), inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        names = ("depth_radius", "bias", "alpha", "beta")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("tfrobust")
class LpPooling2D(keras.layers.Layer):
    """The lp norm of each window: (sum |x|^p)^(1/p), per channel.

    A sum, not a mean: p = 1 is average pooling of |x| times the window's size, and p -> inf tends
    to max pooling of |x|. Large p do not overflow: windows are scaled by their largest value.

    At a window of zeros the gradient is taken as zero, a subgradient, and so are the second
    derivatives; for p < 2 they are also taken as zero along a zero pixel, where they are infinite.

    Args:
        pool_size: height and width of a window, or one number for both.
        strides: likewise; None for `pool_size`.
        padding: "valid", or "same", which pads with zeros as TensorFlow does.
        p: at least 1 and finite.

    Inputs are (batch, height, width, channels).

    Raises:
        InputError: a setting is out of range, or a window is larger than the images.
    """

    def __init__(
        self,
        pool_size: int | tuple[int, int] = 2,
        strides: int | tuple[int, int] | None = None,
        padding: str = "valid",
        p: float = 2.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.pool_size = _pair(pool_size, "pool_size")
        self.strides = self.pool_size if strides is None else _pair(strides, "strides")
        if padding not in ("valid", "same"):
            raise InputError(f'padding must be "valid" or "same", got {padding!r}')
        if not 1 <= p < np.inf:
            raise InputError(f"p must be at least 1 and finite, got {p}; use MaxPooling2D for inf")
        self.padding, self.p = padding, float(p)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def call(self, inputs: Any) -> Any:
        tiles = self._tiles(_wide(inputs))
        height, width = self.pool_size
        # ||s x||_p = s ||x||_p for any s > 0, so that the scale needs no gradient
        largest = tf.nn.max_pool2d(
            tf.abs(tf.stop_gradient(tiles)), (height, width), (height, width), "VALID"
        )
        normal = largest >= tiles.dtype.as_numpy_dtype(_TINY)
        scale = tf.stop_gradient(tf.where(normal, largest, tf.ones_like(largest)))
        powers = self._power(tiles / tf.repeat(tf.repeat(scale, height, 1), width, 2))
        total = height * width * tf.nn.avg_pool2d(powers, (height, width), (height, width), "VALID")
        empty = tf.equal(total, 0)
        root = _positive_power(tf.where(empty, tf.ones_like(total), total), 1 / self.p)
        return tf.cast(tf.where(empty, tf.zeros_like(root), scale * root), inputs.dtype)

    def _tiles(self, x: tf.Tensor) -> tf.Tensor:
        """Images rearranged so that overlapping windows become adjacent, non-overlapping ones."""
        for axis, (pool, stride) in enumerate(zip(self.pool_size, self.strides, strict=True), 1):
            size = x.shape[axis] or tf.shape(x)[axis]
            if self.padding == "same":
                count = -(-size // stride)
                missing = tf.maximum((count - 1) * stride + pool - size, 0)
                padding = [(0, 0)] * 4
                padding[axis] = (missing // 2, missing - missing // 2)
                x = tf.pad(x, padding)
            else:
                count = (size - pool) // stride + 1
            if pool == stride:
                kept = [slice(None)] * axis + [slice(count * pool)]
                x = x[tuple(kept)]
            else:
                indices = tf.range(count)[:, None] * stride + tf.range(pool)
                x = tf.gather(x, tf.reshape(indices, [-1]), axis=axis)
        return x

    def _power(self, x: tf.Tensor) -> tf.Tensor:
        if self.p == 2:
            return tf.square(x)
        # neither |x| nor its power is differentiable at zero
        zero = tf.equal(x, 0)
        power = _positive_power(tf.abs(tf.where(zero, tf.ones_like(x), x)), self.p)
        return tf.where(zero, tf.zeros_like(x), power)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        sizes = []
        for size, pool, stride in zip(input_shape[1:3], self.pool_size, self.strides, strict=True):
            if size is None:
                sizes.append(None)
            elif self.padding == "same":
                sizes.append(-(-size // stride))
            elif size < pool:
                raise InputError(
                    f"{self.name} has windows of {self.pool_size}, larger than the images, "
                    f"{tuple(input_shape)}: make pool_size smaller, or pad them"
                )
            else:
                sizes.append((size - pool) // stride + 1)
        return (input_shape[0], *sizes, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "pool_size": self.pool_size,
            "strides": self.strides,
            "padding": self.padding,
            "p": self.p,
        }


@keras.saving.register_keras_serializable("tfrobust")
class SoftmaxAsLogits(keras.layers.Layer):
    """The softmax over the last axis, for a model whose probabilities are to be taken for logits.

    A softmax of Keras at a model's end is left out by this library. This one stays where the model
    is a graph of layers (Sequential or Functional): cross-entropy is that of softmax(softmax(z)),
    "the gradient of the logit" is the probability's, and attacks act on probabilities.

    It is no good idea: the outputs lie in [0, 1], so that with K classes the cross-entropy cannot
    fall below log(1 + (K - 1) / e), 1.46 for ten classes, and the gradients of confident examples
    vanish. It is here to reproduce networks that were trained this way, such as the wide residual
    network of Noack 2020's released code. For any other model end in Dense(classes).

    Inputs are (batch, ..., classes); outputs have the same shape, and are float32 where inputs are
    in half precision. A subclassed model that ends in it is refused (`NotLogitsError`), as others
    whose outputs are probabilities.
    """

    def call(self, inputs: Any) -> Any:
        # no softmax operation, which would be cut off from a traced model's end unnoticed
        return tf.exp(tf.nn.log_softmax(_wide(inputs)))


# below this a largest value is too small a divisor in single precision
_TINY = 1e-37


def _wide(x: tf.Tensor) -> tf.Tensor:
    """Cast half precision, in which squares overflow, to single."""
    return x if x.dtype.size > 2 else tf.cast(x, tf.float32)


def _positive_power(base: tf.Tensor, exponent: float) -> tf.Tensor:
    """base^exponent for base > 0; the general tf.pow is several times slower."""
    if exponent == 1:
        return base
    if exponent == 0.5:
        return tf.sqrt(base)
    if exponent == -0.75:
        root = tf.math.rsqrt(base)
        return root * tf.sqrt(root)
    return tf.exp(exponent * tf.math.log(base))


def _pair(value: Any, name: str) -> tuple[int, int]:
    pair = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(pair) != 2:
        raise InputError(f"{name} must be one whole number or two, got {value}")
    return as_count(name, pair[0], 1), as_count(name, pair[1], 1)
