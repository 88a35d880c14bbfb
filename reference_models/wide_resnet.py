"""Wide residual networks (Zagoruyko 2016), WRN-28-10 among them, also as in Noack 2020's code."""

from __future__ import annotations

import keras
from keras import layers

from reference_models.kim2019 import Variant, as_variant
from tfrobust.errors import InputError
from tfrobust.layers import SoftmaxAsLogits

__all__ = ["wide_resnet"]


def wide_resnet(
    *,
    variant: Variant = "text",
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.3,
    through_softmax: bool = False,
) -> keras.Model:
    """Three groups of pre-activation residual blocks, 16, 32 and 64 times `widen` channels.

    A block is twice batch normalisation, ReLU and 3x3 convolution, with dropout between the
    convolutions. The second and the third group halve the image. Where the channels or the size
    change, the shortcut is a 1x1 convolution.

    The variant "text" is the network of Zagoruyko 2016 and its released code: the first convolution
    of a block halves the image, the shortcut's convolution is of the normalised input, convolutions
    have no biases, and kernels start by He's normal rule. Noack 2020's text cites this network.

    The variant "released" is the network in Noack 2020's released code (PyTorch):

    - the second convolution of a block halves the image, padded with one pixel on every side;
    - the shortcut's convolution is of the block's input as it is, not normalised;
    - all convolutions have biases;
    - batch normalisation as in PyTorch: epsilon 1e-5, and moving statistics that keep .9 of
      themselves in a step, in the last one .1. (PyTorch's moving variance is the unbiased one; the
      one here is not.)
    - kernels and biases start uniform in +-1 / sqrt(fan_in), PyTorch's default: the code has an
      initialisation of its own, but never calls it.

    Args:
        variant: "text" or "released".
        input_shape: height, width, channels; pixels in [0, 1] in Noack 2020.
        classes: number of logits.
        depth: convolutions along the deepest path: 6 n + 4, with n blocks per group.
        widen: the widening factor k.
        dropout: rate; 0 for no dropout layers.
        through_softmax: outputs are the softmax's probabilities, and are taken for logits, as in
            Noack 2020's released code: see `tfrobust.layers.SoftmaxAsLogits`.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: an unknown variant, a depth that is not 6 n + 4 with n of at least 1, or `widen`
            below 1.

    Source: Zagoruyko 2016; Noack 2020, section 4.3.
    """
    released = as_variant(variant) == "released"
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"depth must be 6 n + 4 with n of at least 1 (10, 16, 28), got {depth}")
    if widen < 1:
        raise InputError(f"widen must be at least 1, got {widen}")
    residual = _released_residual if released else _residual
    inputs = keras.Input(input_shape)
    x = _with_biases(inputs, 16, 3, 1) if released else _convolution(16, 3, 1)(inputs)
    for group, filters in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for block in range((depth - 4) // 6):
            x = residual(x, filters, 2 if group and not block else 1, dropout)
    # Keras's momentum is what is kept, PyTorch's .9 what is replaced
    normalised = _normalised(x, momentum=0.1) if released else layers.BatchNormalization()(x)
    x = layers.ReLU()(normalised)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, **(_uniform(x.shape[-1]) if released else {}))(x)
    if through_softmax:
        x = SoftmaxAsLogits()(x)
    return keras.Model(inputs, x, name=f"wide_resnet_{depth}_{widen}")


def _residual(
    x: keras.KerasTensor, filters: int, strides: int, dropout: float
) -> keras.KerasTensor:
    active = layers.ReLU()(layers.BatchNormalization()(x))
    changes = strides > 1 or x.shape[-1] != filters
    shortcut = _convolution(filters, 1, strides)(active) if changes else x
    y = _convolution(filters, 3, strides)(active)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    if dropout:
        y = layers.Dropout(dropout)(y)
    y = _convolution(filters, 3, 1)(y)
    return layers.Add()([y, shortcut])


def _convolution(filters: int, size: int, strides: int) -> layers.Conv2D:
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )


def _released_residual(
    x: keras.KerasTensor, filters: int, strides: int, dropout: float
) -> keras.KerasTensor:
    changes = strides > 1 or x.shape[-1] != filters
    shortcut = _with_biases(x, filters, 1, strides) if changes else x
    y = layers.ReLU()(_normalised(x, momentum=0.9))
    y = _with_biases(y, filters, 3, 1)
    if dropout:
        y = layers.Dropout(dropout)(y)
    y = layers.ReLU()(_normalised(y, momentum=0.9))
    y = _with_biases(y, filters, 3, strides)
    return layers.Add()([y, shortcut])


def _normalised(x: keras.KerasTensor, momentum: float) -> keras.KerasTensor:
    return layers.BatchNormalization(momentum=momentum, epsilon=1e-5)(x)


def _with_biases(x: keras.KerasTensor, filters: int, size: int, strides: int) -> keras.KerasTensor:
    """A convolution as PyTorch has it, of x padded by half the kernel on every side."""
    # with strides, "same" would pad an even size below and on the right only
    explicit = strides > 1 and size > 1
    if explicit:
        x = layers.ZeroPadding2D(size // 2)(x)
    convolution = layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="valid" if explicit else "same",
        **_uniform(size * size * x.shape[-1]),
    )
    return convolution(x)


def _uniform(fan_in: int) -> dict[str, keras.initializers.Initializer]:
    """PyTorch's default initialisation of a convolution or dense layer."""
    bound = fan_in**-0.5
    return {
        name: keras.initializers.RandomUniform(-bound, bound)
        for name in ("kernel_initializer", "bias_initializer")
    }
