"""The MNIST classifier of Etmann 2019 (the released code's SmallNet)."""

from __future__ import annotations

import keras
from keras import layers

__all__ = ["mnist_cnn"]


def mnist_cnn(*, input_shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10) -> keras.Model:
    """Three 3x3 convolutions of 32, 64, 128 filters with max pooling, dense 128, dropout .5.

    Args:
        input_shape: height, width, channels; pixels in [0, 1].
        classes: number of logits.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.
    """
    inputs = keras.Input(input_shape)
    x = inputs
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name="mnist_cnn")
