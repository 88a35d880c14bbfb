"""A classifier of pixels in the unit range: Foolbox's constants mean the same for any unit.

Carlini-Wagner's constant in Foolbox 3 multiplies squared distances in pixels, so that on [0, 255]
no success is worth its distance; other attacks have steps and radii in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import Classifier, gradients_at
from tfrobust.norms import clip_to_range

__all__ = ["UNIT", "UnitRange"]

UNIT = (0.0, 1.0)


class UnitRange:
    """Maps images of a value range to [0, 1] and back, and a classifier's logits with them.

    Args:
        model: any classifier.
        x: (batch, *input), as `as_images` returns it.
        value_range: smallest and largest valid pixel.
    """

    def __init__(self, model: Any, x: np.ndarray, value_range: tuple[float, float]):
        self._range = value_range
        self.low, self.width = value_range[0], value_range[1] - value_range[0]
        classifier = Classifier.of(model, x)
        self._values = classifier.compiled(_values, batched_args=1)
        self._pull_back = classifier.compiled(_pull_back, batched_args=2)

    @property
    def _scalars(self) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.constant(self.low, tf.float32), tf.constant(self.width, tf.float32)

    def unit(self, x: tf.Tensor) -> tf.Tensor:
        """Images in the unit range."""
        return x if self._range == UNIT else clip_to_range((x - self.low) / self.width, UNIT)

    def pixels(self, images: Any, x: tf.Tensor) -> tf.Tensor:
        """Images of the unit range in the value range; pixels as in x stay exactly as they are."""
        images = tf.cast(images, x.dtype)
        if self._range == UNIT:
            return images
        found = clip_to_range(self.low + self.width * images, self._range)
        return tf.where(images == self.unit(x), x, found)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Of images in the unit range; an eager tape gets gradients of the images only.

        A tape around a compiled function would have the gradients of all weights computed too.
        """

        @tf.custom_gradient
        def with_input_gradient(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
            def gradient(upstream: tf.Tensor, variables: Any = None) -> Any:
                pulled = self._pull_back(images, upstream, *self._scalars)
                return pulled if variables is None else (pulled, [None] * len(variables))

            return self._values(images, *self._scalars), gradient

        return with_input_gradient(images)


def _values(logits: keras.Model) -> Callable[..., tf.Tensor]:
    def run(images: tf.Tensor, low: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return tf.cast(logits(low + width * images, training=False), tf.float32)

    return run


def _pull_back(logits: keras.Model) -> Callable[..., tf.Tensor]:
    def run(images: tf.Tensor, upstream: tf.Tensor, low: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        _, pull_back = gradients_at(logits, low + width * images)
        return width * pull_back(upstream)

    return run
