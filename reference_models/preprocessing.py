"""From RGB pixels in 0..255 to a network's input and back, for every Keras application."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reference_models.applications import Constructor, constructors, default_size, find, module_of
from tfrobust.errors import InputError

__all__ = ["Preprocessing", "preprocessing"]

_keras_function = keras.applications.imagenet_utils.preprocess_input
_MODES: dict[str, Callable[[Any], Any]] = {
    "caffe": functools.partial(_keras_function, mode="caffe"),
    "tf": functools.partial(_keras_function, mode="tf"),
    "torch": functools.partial(_keras_function, mode="torch"),
    "unit": lambda images: images / 255,
    "none": lambda images: images,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Network channel k is `scale[k]` times RGB channel `channels[k]`, plus `offset[k]`."""

    name: str
    channels: tuple[int, ...]
    """Index of the RGB channel of each network channel; (2, 1, 0) is BGR."""
    scale: tuple[float, ...]
    """Network units per grey level, one value per network channel."""
    offset: tuple[float, ...]
    """Network input for black, one value per network channel."""
    function: Callable[[Any], Any] = dataclasses.field(repr=False)
    """Keras's function, which may write into its argument."""
    constructor: Constructor | None = dataclasses.field(default=None, repr=False)

    def __call__(self, images: Any) -> Any:
        """The network's input, float32, for images (height, width, 3) or a batch of them.

        Args:
            images: RGB in 0..255 of any numeric dtype: an array, which is not modified, or a
                tensor, also a symbolic one as in `tf.data.Dataset.map`.

        Returns:
            an array for an array, a tensor for a tensor, of the same shape.

        Raises:
            InputError: the images have another shape.
        """
        if _is_tensor(images):
            _validate_shape(images.shape)
            return self.function(keras.ops.cast(images, "float32"))
        values = np.array(images, np.float32)
        _validate_shape(values.shape)
        return np.ascontiguousarray(self.function(values))

    def inverse(self, x: Any) -> Any:
        """RGB in 0..255, float32, neither rounded nor clipped, from a network's input.

        Raises:
            InputError: the last axis does not have length 3.
        """
        order = np.argsort(self.channels)
        if _is_tensor(x):
            _validate_shape(x.shape)
            offset, scale = np.float32(self.offset), np.float32(self.scale)
            pixels = (keras.ops.cast(x, "float32") - offset) / scale
            return keras.ops.take(pixels, order, axis=-1)
        x = np.asarray(x, np.float64)
        _validate_shape(x.shape)
        return ((x - self.offset) / self.scale)[..., order].astype(np.float32)

    @property
    def low(self) -> tuple[float, ...]:
        """Least value per network channel."""
        return tuple(np.minimum(self.offset, self._white).tolist())

    @property
    def high(self) -> tuple[float, ...]:
        """Largest value per network channel."""
        return tuple(np.maximum(self.offset, self._white).tolist())

    @property
    def value_range(self) -> tuple[float, float]:
        """Least and largest value over all channels."""
        return min(self.low), max(self.high)

    @functools.cached_property
    def size(self) -> tuple[int, int] | None:
        """The model's default height and width; None for a preprocessing without a model."""
        return None if self.constructor is None else default_size(self.constructor)

    @property
    def _white(self) -> np.ndarray:
        return np.add(self.offset, np.multiply(255, self.scale))


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing of a model, or a standard one.

    Args:
        name: a constructor of Keras Applications as in `build`, for the model's `preprocess_input`;
            or "caffe" (BGR, ImageNet's mean colour subtracted), "tf" (to [-1, 1]), "torch" (mean
            and deviation of ImageNet's channels), "unit" (to [0, 1]), "none".

    Raises:
        InputError: unknown name, or a preprocessing that is not affine in each channel.
    """
    if name in _MODES:
        return _affine_form(name, _MODES[name])
    constructor = find(name)
    if constructor is None:
        known = [*_MODES, *constructors()]
        close = difflib.get_close_matches(name.lower(), known, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown preprocessing {name!r}; there are {', '.join(known)}.{hint}")
    return _affine_form(constructor.__name__, module_of(constructor).preprocess_input, constructor)


def _affine_form(
    name: str, function: Callable[[Any], Any], constructor: Constructor | None = None
) -> Preprocessing:
    """Channel order, scale and offset, determined from black and the three pure colours."""

    def values(image: np.ndarray) -> np.ndarray:
        return np.array(function(image.copy()), np.float64)

    colours = 255 * np.eye(3).reshape(3, 1, 1, 3)
    black = values(np.zeros((1, 1, 3)))[0, 0]
    response = values(colours).reshape(3, 3) - black
    channels = np.abs(response).argmax(axis=0)
    scale = response[channels, range(3)] / 255
    image = np.random.default_rng(0).uniform(0, 255, (4, 5, 3))
    affine = sorted(channels) == [0, 1, 2] and np.all(scale != 0)
    if not affine or not np.allclose(values(image), scale * image[..., channels] + black):
        raise InputError(
            f"the preprocessing of {name} is not affine in each channel, so that it has no value "
            "range or inverse; preprocess the images first and use preprocessing('none')"
        )
    return Preprocessing(
        name,
        tuple(channels.tolist()),
        tuple(scale.tolist()),
        tuple(black.tolist()),
        function,
        constructor,
    )


def _is_tensor(values: Any) -> bool:
    return tf.is_tensor(values) or keras.backend.is_keras_tensor(values)


def _validate_shape(shape: Any) -> None:
    if len(shape) not in (3, 4) or shape[-1] not in (3, None):
        raise InputError(
            f"images have shape (height, width, 3) or (batch, height, width, 3), got {tuple(shape)}"
        )
