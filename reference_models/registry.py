"""build(name): every architecture by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import keras

from reference_models.mnist_cnn import mnist_cnn

_BUILDERS: dict[str, Callable[..., keras.Model]] = {"mnist_cnn": mnist_cnn}


def names() -> list[str]:
    """Names that `build` knows."""
    return sorted(_BUILDERS)


def build(name: str, **settings: Any) -> keras.Model:
    """An untrained model that returns logits (batch, classes).

    Args:
        name: one of `names()`.
        settings: of the architecture, such as `input_shape` and `classes`.

    Raises:
        ValueError: unknown name.
        TypeError: a setting that the architecture does not have.
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown model {name!r}; there are {', '.join(names())}.{hint}")
    return _BUILDERS[name](**settings)
