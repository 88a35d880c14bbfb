"""Caffe's Network in Network for CIFAR-10 (Lin 2014; Peck 2017, chapter 5)."""

from __future__ import annotations

import keras
from keras import layers

__all__ = ["cifar_nin"]


def cifar_nin(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    final_relu: bool = True,
) -> keras.Model:
    """Three blocks of a convolution and 1x1 convolutions, then global average pooling.

    ReLU follows every convolution; max pooling ends the first block, average pooling the second,
    each 3x3 with stride 2 and dropout .5. Caffe rounds the sizes of pooled images up, as "same"
    does: 32 -> 16 -> 8. Kernels have He initialisation: with Keras's smaller default the network
    hardly trains.

    Args:
        input_shape: height, width, channels; pixels in [0, 1].
        classes: number of logits.
        final_relu: ReLU also after the last convolution, as in Caffe's prototxt; logits are then
            never negative.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.
    """
    inputs = keras.Input(input_shape)
    x = _block(inputs, (192, 160, 96), size=5)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.Dropout(0.5)(x)
    x = _block(x, (192, 192, 192), size=5)
    x = layers.AveragePooling2D(3, strides=2, padding="same")(x)
    x = layers.Dropout(0.5)(x)
    x = _block(x, (192, 192), size=3)
    x = _convolution(classes, 1, "relu" if final_relu else None)(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="cifar_nin")


def _block(x: keras.KerasTensor, filters: tuple[int, ...], size: int) -> keras.KerasTensor:
    """A `size` x `size` convolution, then 1x1 convolutions."""
    for count in filters:
        x = _convolution(count, size, "relu")(x)
        size = 1
    return x


def _convolution(filters: int, size: int, activation: str | None) -> layers.Conv2D:
    return layers.Conv2D(
        filters, size, padding="same", activation=activation, kernel_initializer="he_normal"
    )
