"""Logits of models that are not a graph of layers: traced, then cut before TensorFlow's softmax."""

from __future__ import annotations

import math
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.checks import (
    are_probabilities,
    check_logits,
    check_output_shape,
    check_softmax,
    hidden_softmax,
    probe_batch,
)
from tfrobust.classifier.keras_internals import all_layers

__all__ = ["TracedModel", "ends_in_softmax", "layers_behind"]

# operations that keep the order of values
_RESHAPING_OPERATIONS = ("Identity", "IdentityN", "Cast", "Reshape", "Squeeze")


class TracedModel(keras.Model):
    """A subclassed classifier; with `strip`, without the softmax at its end.

    Args:
        classifier: the model.
        strip: leave the softmax out.
        weakly: refer to the model by a weak reference only; the view then has no variables.
    """

    def __init__(self, classifier: keras.Model, *, strip: bool, weakly: bool):
        super().__init__(name=f"{classifier.name}_logits", dtype=classifier.dtype_policy)
        self.reference = weakref.ref(classifier)
        if not weakly:
            self.classifier = classifier
        self.strip = strip
        self.traced = tf.function(self.logits, autograph=False, reduce_retracing=True)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        if self.strip and tf.executing_eagerly():
            inputs = tf.convert_to_tensor(inputs)
            rows = tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)
            # a graph also where TensorFlow is told to run functions eagerly
            return self.traced.get_concrete_function(rows, training)(inputs)
        return self.logits(inputs, training)

    def logits(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """In a graph where a softmax is left out."""
        classifier = self.reference()
        outputs = classifier(inputs, training=training)
        if not self.strip:
            return outputs
        logits = softmax_input(outputs)
        if logits is None:
            raise hidden_softmax(classifier)
        return logits


def layers_behind(view: keras.Model) -> list[keras.layers.Layer]:
    """The layers that a view of a model computes with, also where it refers to the model weakly."""
    return all_layers(view.reference() if isinstance(view, TracedModel) else view)


def ends_in_softmax(model: keras.Model, x: Any) -> tuple[bool, int]:
    """Whether a subclassed model ends in a softmax, and its number of classes."""
    batch = probe_batch(model, x)
    values = np.asarray(model(batch, training=False))
    check_output_shape(model.name, values.shape)
    if not are_probabilities(values):
        check_logits(model, values)
        return False, values.shape[1]
    is_softmax = []

    @tf.function(autograph=False)
    def trace(inputs: tf.Tensor) -> tf.Tensor:
        outputs = model(inputs, training=False)
        logits = softmax_input(outputs)
        is_softmax.append(logits is not None)
        return logits if is_softmax[-1] else outputs

    logits = trace.get_concrete_function(batch)(batch)  # calling it would warn of retracing
    if not is_softmax[-1]:
        raise hidden_softmax(model)
    check_softmax(model, logits, values)
    return True, values.shape[1]


def softmax_input(output: tf.Tensor) -> tf.Tensor | None:
    """In a graph: the logits whose softmax is `output` (batch, classes), or None."""
    tensor = output
    while tensor.op.type in _RESHAPING_OPERATIONS:
        tensor = tensor.op.inputs[tensor.value_index]
    if tensor.op.type != "Softmax":  # TensorFlow's is over the last axis
        return None
    logits = tensor.op.inputs[0]
    sizes = logits.shape[1:].as_list() if logits.shape.rank else []
    if not sizes or sizes[-1] != output.shape[-1] or math.prod(s or 0 for s in sizes[:-1]) != 1:
        return None
    if len(sizes) > 1:
        logits = tf.reshape(logits, tf.shape(output))
    return tf.cast(logits, output.dtype)
