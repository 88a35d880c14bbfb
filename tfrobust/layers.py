"""Batch normalisation: a layer with frozen statistics, and exact second derivatives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

__all__ = ["FrozenBatchNormalization", "exact_batch_statistics"]


@keras.saving.register_keras_serializable("tfrobust")
class FrozenBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by its moving statistics, in training too, which never updates them.

    gamma and beta are trained as ever: the option learning_phase=0 of Etmann 2019's released code.
    Weights, their names and settings are `BatchNormalization`'s.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(inputs, training=False, mask=mask)


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
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in normalisations:
        # replicas take turns in threads of their own, and may be inside together
        if "_moments" not in vars(layer):
            layer._moments = _moments_of(layer)
            layer._moments.users = 0
        layer._moments.users += 1
    try:
        yield
    finally:
        for layer in normalisations:
            layer._moments.users -= 1
            if not layer._moments.users:
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
        if layer.synchronized:
            mean = _over_replicas(mean)
        variance = tf.reduce_mean(tf.square(values - mean), axes)
        if layer.synchronized:
            variance = _over_replicas(variance)
        return tf.cast(tf.squeeze(mean, axes), inputs.dtype), tf.cast(variance, inputs.dtype)

    return moments


def _over_replicas(value: tf.Tensor) -> tf.Tensor:
    """In a graph: the mean over all devices, each of which has as many examples."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce("MEAN", value) if context is not None else value
