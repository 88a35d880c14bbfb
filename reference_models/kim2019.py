"""The classifiers of Kim 2019, appendix A.2, as the paper and as its released code have them."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import layers

from reference_models.mlp import mlp
from tfrobust.arguments import as_count
from tfrobust.errors import InputError

__all__ = ["Variant", "as_variant", "kim_cifar_cnn", "kim_mnist_cnn", "kim_toy_mlp"]

Variant = Literal["text", "released"]


def kim_mnist_cnn(
    *,
    variant: Variant = "text",
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    filters: tuple[int, int] | None = None,
    dense: int = 1024,
) -> keras.Model:
    """Two 5x5 convolutions, one 2x2 max pooling after both, dense 1024; for MNIST, Fashion-MNIST.

    ReLU follows the convolutions and the hidden dense layer; convolutions keep the size ("same");
    no dropout. Kernels start by Glorot's uniform rule, biases at zero.

    Args:
        variant: "text": the first convolution has 64 filters, the second 32, as the paper tables;
            "released": 32, then 64, as in the released code.
        input_shape: height and width of at least 2, channels; pixels in [-1, 1].
        classes: number of logits.
        filters: per convolution, instead of the variant's.
        dense: units of the hidden dense layer.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: an unknown variant, or a setting out of range.

    Source: Kim 2019, appendix A.2.
    """
    default = (64, 32) if as_variant(variant) == "text" else (32, 64)
    sizes = _filters(default if filters is None else filters, 2)
    return _cnn("kim_mnist_cnn", input_shape, classes, size=5, blocks=(sizes,), dense=dense)


def kim_cifar_cnn(
    *,
    variant: Variant = "text",
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    filters: tuple[int, int, int, int] | None = None,
    dense: int | None = None,
) -> keras.Model:
    """3x3 convolutions 32, 32, max pooling, 64, 64, max pooling, one hidden dense layer.

    ReLU follows the convolutions and the hidden dense layer; convolutions keep the size ("same"),
    each 2x2 pooling halves it; no dropout. Kernels start by Glorot's uniform rule, biases at zero.

    Args:
        variant: "text": the hidden dense layer has 256 units, as the paper tables; "released": 512,
            as in the released code.
        input_shape: height and width of at least 4, channels; pixels in [-1, 1].
        classes: number of logits.
        filters: per convolution, instead of (32, 32, 64, 64).
        dense: units of the hidden dense layer, instead of the variant's.

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes), untrained.

    Raises:
        InputError: an unknown variant, or a setting out of range.

    Source: Kim 2019, appendix A.2.
    """
    default = 256 if as_variant(variant) == "text" else 512
    units = default if dense is None else dense
    sizes = _filters((32, 32, 64, 64) if filters is None else filters, 4)
    blocks = (sizes[:2], sizes[2:])
    return _cnn("kim_cifar_cnn", input_shape, classes, size=3, blocks=blocks, dense=units)


def kim_toy_mlp(*, dense: int = 128, classes: int = 2) -> keras.Model:
    """A hidden layer of 128 ReLU units for the points of `tfrobust.data.kim_toy`.

    Args:
        dense: units of the hidden layer.
        classes: number of logits.

    Returns:
        a Functional model (batch, 2) -> logits (batch, classes), untrained.

    Raises:
        InputError: a setting out of range.

    Source: Kim 2019, appendix A.2; text and released code agree.
    """
    units = as_count("dense", dense, 1)
    classes = as_count("classes", classes, 2)
    return mlp(
        input_shape=2, hidden=(units,), classes=classes, activation="relu", name="kim_toy_mlp"
    )


def as_variant(variant: Any) -> Variant:
    """`variant`, checked.

    Raises:
        InputError: neither "text" nor "released".
    """
    if variant not in ("text", "released"):
        raise InputError(
            'variant must be "text", as the paper tables the network, or "released", as its code '
            f"builds it; got {variant!r}"
        )
    return variant


def _cnn(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    size: int,
    blocks: tuple[tuple[int, ...], ...],
    dense: int,
) -> keras.Model:
    """Blocks of convolutions, each block with max pooling at its end, then two dense layers."""
    shape = _image_shape(input_shape, least=2 ** len(blocks))
    classes, dense = as_count("classes", classes, 2), as_count("dense", dense, 1)
    inputs = keras.Input(shape)
    x = inputs
    for filters in blocks:
        for count in filters:
            x = layers.Conv2D(count, size, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(dense, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def _image_shape(shape: Any, least: int) -> tuple[int, int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise InputError(f"input_shape must be (height, width, channels), got {shape!r}")
    height, width = (as_count("height and width", size, least) for size in shape[:2])
    return height, width, as_count("channels", shape[2], 1)


def _filters(filters: Any, count: int) -> tuple[int, ...]:
    if not isinstance(filters, (tuple, list)) or len(filters) != count:
        raise InputError(f"filters must be {count} numbers, one per convolution, got {filters!r}")
    return tuple(as_count("filters", number, 1) for number in filters)
