"""Layers that can be differentiated twice where Keras's own cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

__all__ = ["exact_batch_statistics"]


@contextlib.contextmanager
def exact_batch_statistics(model: keras.Model) -> Iterator[None]:
    """While in the block, `model`'s batch normalisation in training mode has a second derivative.

    `tf.nn.moments` stops the gradient at the mean inside the variance. The first derivative is
    right all the same; the second, which every penalty on input gradients needs, is not: with few
    values a channel it was seen to be some percent off.

    Args:
        model: called, or traced, inside the block; its weights are untouched.
    """
    normalisations = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
    ]
    for layer in normalisations:
        layer._moments = _moments_of(layer)
    try:
        yield
    finally:
        for layer in normalisations:
            del layer._moments


def _moments_of(layer: keras.layers.BatchNormalization) -> Callable[..., Any]:
    original = layer._moments

    def moments(inputs: tf.Tensor, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        if mask is not None:  # Keras's own formula there stops no gradient
            return original(inputs, mask)
        wide = inputs.dtype if inputs.dtype.size > 2 else tf.float32
        values = tf.cast(inputs, wide)
        axes = list(layer._reduction_axes)
        mean = tf.reduce_mean(values, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(values - mean), axes)
        return tf.cast(tf.squeeze(mean, axes), inputs.dtype), tf.cast(variance, inputs.dtype)

    return moments
