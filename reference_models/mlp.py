"""MLPs and the linear classifier (Peck 2017, chapters 3 and 4)."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.errors import InputError

__all__ = ["linear", "mlp"]


def mlp(
    *,
    input_shape: tuple[int, ...] | int,
    hidden: tuple[int, ...],
    classes: int,
    activation: str = "tanh",
    name: str = "mlp",
) -> keras.Model:
    """Dense hidden layers, then a dense layer of logits.

    Args:
        input_shape: of one example, flattened where it has more than one axis; or the number of
            features.
        hidden: units per hidden layer; empty for a linear classifier.
        classes: number of logits, 2 for a binary problem.
        activation: of the hidden layers, as Keras names it.
        name: of the model.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: fewer than 2 classes, a layer without units, or an unknown activation.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    if not shape or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise InputError(f"input_shape holds positive whole numbers, got {input_shape!r}")
    if classes < 2:
        raise InputError(f"classes must be at least 2 (one logit per class), got {classes}")
    if min(hidden, default=1) < 1:
        raise InputError(f"every hidden layer needs at least 1 unit, got hidden={hidden!r}")
    inputs = keras.Input(shape)
    x = inputs if len(shape) == 1 else layers.Flatten()(inputs)
    for units in hidden:
        x = layers.Dense(units, activation=activation)(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def linear(*, input_shape: tuple[int, ...] | int = (28, 28, 1), classes: int = 10) -> keras.Model:
    """Logits that are an affine function of the example.

    Args:
        input_shape: of one example, flattened.
        classes: number of logits.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: fewer than 2 classes, or a malformed shape.
    """
    return mlp(input_shape=input_shape, hidden=(), classes=classes, name="linear")
