"""Caffe's LeNet, plain and with normalization after its pooling layers (Peck 2017, chapter 5)."""

from __future__ import annotations

from typing import Literal

import keras
from keras import layers

from tfrobust.errors import InputError
from tfrobust.layers import LocalResponseNormalization

__all__ = ["lenet5"]

Normalization = Literal["lrn", "bn"]


def lenet5(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    normalization: Normalization | None = None,
    after: tuple[int, ...] = (),
) -> keras.Model:
    """Two valid 5x5 convolutions (20 and 50 filters), each with 2x2 max pooling; dense 500 ReLU.

    The convolutions have no ReLU, as in Caffe's prototxt.

    Args:
        input_shape: height and width of at least 16, channels; pixels in [0, 1].
        classes: number of logits.
        normalization: "lrn", local response normalisation over 5 channels with k 2, alpha 1e-4
            and beta .75, or "bn", batch normalisation; None for the plain network.
        after: the pooling layers before the normalization: (1,), (2,) or (1, 2) in LeNet-LRN1, 2
            and 3.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: an unknown normalization, or only one of `normalization` and `after`.
    """
    _validate(normalization, after)
    inputs = keras.Input(input_shape)
    x = inputs
    for pool, filters in enumerate((20, 50), start=1):
        x = layers.Conv2D(filters, 5)(x)
        x = layers.MaxPooling2D(2)(x)
        if pool in after:
            x = _normalization(normalization)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(500, activation="relu")(x)
    name = f"lenet5_{normalization}{sum(after)}" if normalization else "lenet5"
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def _validate(normalization: str | None, after: tuple[int, ...]) -> None:
    if normalization not in (None, "lrn", "bn"):
        raise InputError(f'normalization is None, "lrn" or "bn", got {normalization!r}')
    if tuple(after) not in ((), (1,), (2,), (1, 2)):
        raise InputError(f"after is (1,), (2,) or (1, 2), got {after!r}")
    if (normalization is None) != (not after):
        raise InputError(
            f"normalization={normalization!r} does not go with after={after!r}: give both or none"
        )


def _normalization(kind: str | None) -> keras.layers.Layer:
    if kind == "bn":
        return layers.BatchNormalization()
    return LocalResponseNormalization(depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75)
