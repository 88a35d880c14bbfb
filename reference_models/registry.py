"""build(name): every architecture by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import keras

from reference_models.applications import PREFIX, application, constructors, find
from reference_models.mnist_cnn import mnist_cnn

__all__ = ["build", "names"]

_BUILDERS: dict[str, Callable[..., keras.Model]] = {"mnist_cnn": mnist_cnn}


def names() -> list[str]:
    """Names that `build` knows; those of Keras Applications in lower case."""
    return sorted([*_BUILDERS, *constructors()])


def build(name: str, **settings: Any) -> keras.Model:
    """A model that returns logits (batch, classes), untrained unless weights are asked for.

    Args:
        name: one of `names()`; a constructor of Keras Applications in any case, also as
            "keras_applications:MobileNetV2".
        settings: of the architecture, such as `input_shape` and `classes`. For Keras Applications
            also `weights` (None, "imagenet" or a file), `bn_momentum` and `statistics`: see
            `reference_models.applications.application`.

    Raises:
        ValueError: unknown name, or a setting out of range.
        TypeError: a setting that the architecture does not have.
        ModelFileError: weights that cannot be had, or that are another architecture's.
    """
    if name in _BUILDERS:
        return _BUILDERS[name](**settings)
    constructor = find(name)
    if constructor is None:
        close = difflib.get_close_matches(name.lower().removeprefix(PREFIX), names(), 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown model {name!r}; there are {', '.join(names())}.{hint}")
    return application(constructor, **settings)
