"""The input pipeline per image of ImageNet: crop, augmentation (in training) and preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data.crops import centre_crop, check_crop, check_scales, random_crop
from tfrobust.errors import InputError

__all__ = ["Augment", "Preprocess", "Preprocessor"]

_COLOURS = ((0, 0, 0), (255, 255, 255), (200, 100, 50))  # their values tell preprocessings apart

Augment = Callable[[Any, Any], tf.Tensor]
Preprocess = Callable[[tf.Tensor], tf.Tensor]


class Preprocessor:
    """From decoded images to the network's input: crops of training and evaluation, preprocessing.

    Args:
        size: height and width of the crops.
        shorter_side: training resizes the shorter side to a length drawn from this range.
        validation_side: evaluation resizes it to this length.
        augment: (image, seed) -> (*size, 3), instead of `random_crop`.
        preprocess: maps (count, *size, 3) RGB in 0..255 to the network's input.
        value_range: least and largest value of the network's input; default: the attribute
            `value_range` of `preprocess`.

    Raises:
        InputError: a crop does not fit, or the value range is not known.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] = (256, 256),
        shorter_side: tuple[int, int] = (258, 512),
        validation_side: int = 256,
        augment: Augment | None = None,
        preprocess: Preprocess | None = None,
        value_range: Any = None,
    ):
        check_scales(size, shorter_side)
        check_crop(size, validation_side)
        if preprocess is None:
            preprocess, value_range = _unchanged, (0.0, 255.0)
        elif value_range is None:
            value_range = getattr(preprocess, "value_range", None)
        if value_range is None:
            raise InputError(
                "preprocess has no attribute value_range: give value_range=(least, largest), the "
                "values that it can return"
            )
        self.size, self.value_range = tuple(size), value_range
        self._shorter_side, self._validation_side = tuple(shorter_side), validation_side
        self._augment, self._preprocess = augment, preprocess
        colours = np.array(_COLOURS, np.float32)[:, None, None]
        self._probe = self.network_input(tf.constant(np.tile(colours, (1, *size, 1)))).numpy()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed image."""
        return self._probe.shape[1:]

    def training_crop(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """(height, width, 3) -> (*size, 3) float32, before preprocessing."""
        if self._augment is None:
            return random_crop(image, seed, self.size, self._shorter_side)
        return tf.ensure_shape(self._augment(image, seed), (*self.size, 3))

    def evaluation_crop(self, image: tf.Tensor) -> tf.Tensor:
        """(height, width, 3) -> (*size, 3) float32, before preprocessing."""
        return centre_crop(image, self.size, self._validation_side)

    def network_input(self, images: tf.Tensor) -> tf.Tensor:
        """Preprocess: (count, *size, 3) -> (count, *input_shape) float32."""
        return tf.cast(self._preprocess(images), tf.float32)

    def settings(self) -> dict[str, Any]:
        """Plain data that differs whenever the network's input does."""
        return {
            "size": list(self.size),
            "shorter_side": list(self._shorter_side),
            "validation_side": self._validation_side,
            "augmentation": _name(self._augment or random_crop),
            "preprocessing": _name(self._preprocess),
            "colours": [round(float(value), 3) for value in self._probe[:, 0, 0].flat],
        }

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"evaluation: shorter side {self._validation_side}, centre crop {height}x{width}, "
            f"preprocessing {_name(self._preprocess)}"
        )


def _unchanged(images: tf.Tensor) -> tf.Tensor:
    return images


def _name(function: Callable[..., Any]) -> str:
    kind = type(function).__name__
    return getattr(function, "name", None) or getattr(function, "__qualname__", kind).lstrip("_")
