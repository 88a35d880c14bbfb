"""The MNIST classifier of Noack 2020; its CIFAR-10 network is in `wide_resnet`."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.arguments import as_count, as_not_negative
from tfrobust.errors import InputError

__all__ = ["noack_mnist_cnn"]


def noack_mnist_cnn(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    filters: tuple[int, int] = (32, 64),
    dense: int = 1024,
    dropout: float = 0.5,
) -> keras.Model:
    """Two 5x5 convolutions of 32 and 64 filters, each with 2x2 max pooling, dense 1024, dropout .5.

    ReLU follows the convolutions and the hidden dense layer; convolutions keep the size ("same").
    Text and released code agree. The text does not say how weights start: here kernels by Glorot's
    uniform rule and biases at zero, in the released code (PyTorch) both uniform in
    +-1 / sqrt(fan_in).

    Args:
        input_shape: height and width of at least 4, channels; pixels in [0, 1].
        classes: number of logits.
        filters: per convolution.
        dense: units of the hidden dense layer.
        dropout: rate in [0, 1) before the last layer; 0 for no dropout layer.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: a setting out of range.

    Source: Noack 2020, section 4.2; `SimpleCNN` of the released code.
    """
    inputs = keras.Input(_image_shape(input_shape))
    classes, dense = as_count("classes", classes, 2), as_count("dense", dense, 1)
    if as_not_negative("dropout", dropout) >= 1:
        raise InputError(f"dropout must be below 1, got {dropout!r}")
    x = inputs
    for count in _filters(filters):
        x = layers.Conv2D(count, 5, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(dense, activation="relu")(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name="noack_mnist_cnn")


def _image_shape(shape: Any) -> tuple[int, int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise InputError(f"input_shape must be (height, width, channels), got {shape!r}")
    height, width = (as_count("height and width", size, 4) for size in shape[:2])
    return height, width, as_count("channels", shape[2], 1)


def _filters(filters: Any) -> tuple[int, ...]:
    if not isinstance(filters, (tuple, list)) or len(filters) != 2:
        raise InputError(f"filters must be 2 numbers, one per convolution, got {filters!r}")
    return tuple(as_count("filters", number, 1) for number in filters)
