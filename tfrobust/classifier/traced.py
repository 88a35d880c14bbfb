"""Logits of models that are not a graph of layers: traced, then cut before TensorFlow's softmax."""

from __future__ import annotations

import inspect
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
    check_view,
    hidden_softmax,
    probe_batch,
)
from tfrobust.classifier.keras_internals import all_layers
from tfrobust.errors import InputError

__all__ = ["TracedModel", "call_model", "ends_in_softmax", "layers_behind"]

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
            # TensorFlow notes on the model, once, that it is part of another one
            self.classifier = classifier
        self.strip = strip
        self.traced = tf.function(self.logits, autograph=False, reduce_retracing=True)
        self.built = True

    def viewed(self) -> keras.Model:
        """The model, which has to exist still."""
        classifier = self.reference()
        if classifier is None:
            raise InputError(
                f"the model behind {self.name} has been deleted: keep a reference to it as long as "
                "functions of it are used"
            )
        return classifier

    def call(self, inputs: Any, training: bool = False) -> Any:
        if self.strip and tf.executing_eagerly():
            inputs = tf.convert_to_tensor(inputs)
            rows = tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)
            # a graph also where TensorFlow is told to run functions eagerly
            return self.traced.get_concrete_function(rows, training)(inputs)
        return self.logits(inputs, training)

    def logits(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """In a graph where a softmax is left out."""
        classifier = self.viewed()
        outputs = call_model(classifier, inputs, training)
        if not self.strip:
            return outputs
        logits = softmax_input(outputs)
        if logits is None:
            raise hidden_softmax(classifier)
        return logits


def layers_behind(view: keras.Model) -> list[keras.layers.Layer]:
    """The layers that a view of a model computes with, also where it refers to the model weakly."""
    return all_layers(view.viewed() if isinstance(view, TracedModel) else view)


def call_model(model: keras.Model, inputs: Any, training: bool | None = False) -> Any:
    """What a model returns, also where its class has a `__call__` that takes inputs alone."""
    parameters = inspect.signature(type(model).__call__).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if takes_any or "training" in parameters:
        return model(inputs, training=training)
    return model(inputs)


def ends_in_softmax(model: keras.Model, x: Any) -> tuple[bool, int]:
    """Whether a subclassed model ends in a softmax, and its number of classes."""
    batch = probe_batch(model, x)
    values = np.asarray(call_model(model, batch))
    check_output_shape(model.name, values.shape)
    if not are_probabilities(values, half=values.dtype.itemsize == 2):
        check_logits(model, values)
        return False, values.shape[1]
    is_softmax = []

    @tf.function(autograph=False)
    def trace(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = call_model(model, inputs)
        logits = softmax_input(outputs)
        is_softmax.append(logits is not None)
        return (logits if is_softmax[-1] else outputs), outputs

    # calling it would warn of retracing
    logits, outputs = trace.get_concrete_function(batch)(batch)
    if not is_softmax[-1]:
        raise hidden_softmax(model)
    check_view(model, logits, outputs, stripped=True, shared=True)
    # the same eagerly, unless the model is random, which `Classifier.check` refuses to evaluate
    if np.array_equal(values, np.asarray(call_model(model, batch))):
        check_view(model, logits, values, stripped=True)
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
