"""Wide residual networks (Zagoruyko 2016), WRN-28-10 among them."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.errors import InputError

__all__ = ["wide_resnet"]


def wide_resnet(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.3,
) -> keras.Model:
    """Three groups of pre-activation residual blocks, 16, 32 and 64 times `widen` channels.

    A block is twice batch normalisation, ReLU and 3x3 convolution, with dropout between the
    convolutions. The second and the third group halve the image. Where the channels or the size
    change, the shortcut is a 1x1 convolution of the normalised input, as in the released code.

    Args:
        input_shape: height, width, channels.
        classes: number of logits.
        depth: convolutions along the deepest path: 6 n + 4, with n blocks per group.
        widen: the widening factor k.
        dropout: rate; 0 for no dropout layers.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: a depth that is not 6 n + 4 with n of at least 1, or `widen` below 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"depth must be 6 n + 4 with n of at least 1 (10, 16, 28), got {depth}")
    if widen < 1:
        raise InputError(f"widen must be at least 1, got {widen}")
    inputs = keras.Input(input_shape)
    x = _convolution(16, 3, 1)(inputs)
    for group, filters in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for block in range((depth - 4) // 6):
            x = _residual(x, filters, 2 if group and not block else 1, dropout)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=f"wide_resnet_{depth}_{widen}")


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
