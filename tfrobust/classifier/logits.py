"""The logits view of any Keras classifier: the same weights without the final softmax.

Margins, gradients and bounds are statements about logits. A view shares the classifier's
variables, so that training either trains both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.inputs import model_input_shape
from tfrobust.errors import InputTypeError, TfrobustError

__all__ = ["NotLogitsError", "is_graph", "logits_model"]

_ADVICE = (
    "Give a model that returns logits, for instance one whose last layer is Dense(classes) "
    "without an activation, or that ends in a softmax layer, which is then left out."
)
# reshaping only: a softmax before them can be dropped and they can be applied again
_TRANSPARENT = ("Flatten", "Reshape", "Dropout", "Identity", "Squeeze")
_NOT_LOGITS = ("ReLU", "LeakyReLU", "PReLU", "ELU", "Sigmoid", "Tanh", "Softplus")
# of the convolution before global average pooling: its averages have no upper bound, so that
# they are logits even where those of an untrained model all happen to lie between 0 and 1
_UNBOUNDED = (None, keras.activations.linear, keras.activations.relu)
_SOFTMAXES = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
_PROBE_ROWS = 8
_ANY = keras.Input((1,))
# of Sequential and of Functional models, whose class has no public name
_GRAPH_CALLS = (keras.Sequential.call, type(keras.Model(_ANY, _ANY)).call)


class NotLogitsError(TfrobustError, ValueError):
    """The model's output is not logits, and no logits could be found inside it."""


@keras.saving.register_keras_serializable("tfrobust")
class WithoutActivation(keras.layers.Layer):
    """A built layer without its activation, sharing its variables."""

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        given = {"training": training} if self.layer._call_has_training_arg else {}
        with _linear_heads([self.layer]):
            return self.layer(inputs, **given)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WithoutActivation:
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


class _SubclassedLogits(keras.Model):
    """A subclassed classifier called with the softmax of one of its layers left out."""

    def __init__(self, classifier: keras.Model, head: keras.layers.Layer):
        super().__init__(name=f"{classifier.name}_logits")
        self.classifier = classifier
        self.head = head
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        with _linear_heads([self.head]):
            return self.classifier(inputs, training=training)


@contextlib.contextmanager
def _linear_heads(layers: list[keras.layers.Layer]) -> Iterator[None]:
    """Take the activations of `layers` away while a call is traced; weights stay where they are."""
    saved = []
    for layer in layers:
        if isinstance(layer, keras.layers.Softmax):
            saved.append((layer, "call", layer.call))
            layer.call = lambda inputs, mask=None: inputs
        else:
            saved.append((layer, "activation", layer.activation))
            layer.activation = keras.activations.linear
    try:
        yield
    finally:
        for layer, name, value in saved:
            setattr(layer, name, value)


def is_graph(model: keras.Model) -> bool:
    """Whether a model computes what its graph of layers says: Sequential and Functional models.

    Not so where a subclass, or the object, has a `call` of its own.
    """
    own = "call" in vars(model) or type(model).call not in _GRAPH_CALLS
    return bool(getattr(model, "outputs", None)) and not own


def logits_model(model: keras.Model, x: Any = None) -> keras.Model:
    """A Keras model of `model`'s logits, sharing its weights.

    A softmax at the end, fused into a layer or standing alone, also inside a nested model, is
    left out; a model that already returns logits comes back as it is.

    Args:
        model: classifier with output (batch, classes): Sequential, Functional or subclassed.
        x: a few inputs (batch, ...), needed only where the model declares no input shape.

    Raises:
        TypeError: not a Keras model.
        NotLogitsError: one output unit, several outputs, or an output that is not logits and
            whose logits cannot be found.
    """
    if not isinstance(model, keras.Model):
        raise InputTypeError(f"expected a keras.Model, got {type(model).__name__}")
    if isinstance(model, keras.Sequential) and model.layers and not model.built:
        shape = model_input_shape(model.layers[0]) if x is None else np.shape(x)[1:]
        if shape is not None:
            model.build((None, *shape))
    if is_graph(model):  # Functional, or Sequential with a known input
        if len(model.outputs) != 1 or len(model.inputs) != 1:
            raise NotLogitsError(
                f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
                "one of each is needed"
            )
        _check_output_shape(model.name, tuple(model.outputs[0].shape))
        output = _without_softmax(model.outputs[0], model, x)
        if output is model.outputs[0] and not isinstance(getattr(model, "output", None), dict):
            return model
        return keras.Model(model.inputs[0], output, name=f"{model.name}_logits")
    return _subclassed(model, x)


def _without_softmax(output: Any, model: keras.Model, x: Any) -> Any:
    """The symbolic tensor of the logits behind `output`; `output` itself if it holds them."""
    history = output._keras_history
    layer = history.operation
    inputs = layer._inbound_nodes[history.node_index].input_tensors
    kind = type(layer).__name__
    activation = getattr(layer, "activation", None)
    if kind == "Softmax" and layer.axis not in (-1, len(inputs[0].shape) - 1):
        raise NotLogitsError(
            f"{model.name} ends in a softmax over axis {layer.axis} (layer {layer.name!r}), which "
            "is not that of the classes. " + _ADVICE
        )
    if kind == "Softmax" or (kind == "Activation" and _is_softmax(activation)):
        return inputs[0]
    if isinstance(layer, keras.Model):
        within = None if x is None else _at(inputs[0], model, x)
        view = logits_model(layer, within)
        return output if view is layer else view(inputs[0])
    if kind in _TRANSPARENT:
        before = _without_softmax(inputs[0], model, x)
        return output if before is inputs[0] else layer(before)
    if _is_softmax(activation):
        bare = WithoutActivation(layer, name=f"{layer.name}_logits", dtype=layer.dtype_policy)
        return bare(inputs[0])
    if kind in _NOT_LOGITS or activation not in (None, keras.activations.linear):
        name = getattr(activation, "__name__", kind)
        raise NotLogitsError(
            f"{model.name} ends in {name} (layer {layer.name!r}); its outputs are not logits. "
            + _ADVICE
        )
    if kind == "GlobalAveragePooling2D" and _is_convolution(inputs[0], _UNBOUNDED):
        return output
    if kind not in ("Dense", "Conv2D", "Conv1D", "Add", "BatchNormalization"):
        _probe(model, x)
    return output


def _is_convolution(tensor: Any, activations: tuple[Any, ...]) -> bool:
    layer = tensor._keras_history.operation
    return isinstance(layer, keras.layers.Conv2D) and layer.activation in activations


def _at(tensor: Any, model: keras.Model, x: Any) -> Any:
    """Values of a symbolic tensor inside `model` for the first few inputs."""
    if tensor is model.inputs[0]:
        return x
    return keras.Model(model.inputs[0], tensor)(_probe_batch(model, x), training=False)


def _is_softmax(activation: Any) -> bool:
    return any(activation is softmax for softmax in _SOFTMAXES)


def _check_output_shape(name: str, shape: tuple[int | None, ...]) -> None:
    if len(shape) != 2:
        raise NotLogitsError(f"{name} returns {shape}; logits have shape (batch, classes)")
    if shape[1] == 1:
        raise NotLogitsError(
            f"{name} has one output unit; one logit a class is needed, two for a binary problem"
        )


def _probe_batch(model: keras.Model, x: Any) -> tf.Tensor:
    if x is not None:
        return tf.constant(np.asarray(x)[:_PROBE_ROWS], tf.float32)
    shape = model_input_shape(model)
    if shape is None or None in shape:
        raise NotLogitsError(
            f"{model.name} declares no input shape; give a few inputs: logits_model(model, x)"
        )
    return tf.constant(np.random.default_rng(0).random((_PROBE_ROWS, *shape)), tf.float32)


def _probe(model: keras.Model, x: Any) -> tuple[tf.Tensor, np.ndarray]:
    """Run the model and refuse outputs that can only be probabilities or their logarithms."""
    batch = _probe_batch(model, x)
    values = np.asarray(model(batch, training=False))
    _check_output_shape(model.name, values.shape)
    if _are_probabilities(values):
        raise NotLogitsError(
            f"{model.name} returns probabilities, and the softmax that makes them is no layer "
            "that could be left out. " + _ADVICE
        )
    if _are_probabilities(np.exp(np.minimum(values, 1.0))):
        raise NotLogitsError(f"{model.name} returns log-probabilities. " + _ADVICE)
    if (values >= 0).all() and (values <= 1).all() and values.std() > 0:
        raise NotLogitsError(
            f"every output of {model.name} lies between 0 and 1, as a sigmoid's do. " + _ADVICE
        )
    return batch, values


def _are_probabilities(values: np.ndarray) -> bool:
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-4))


def _subclassed(model: keras.Model, x: Any) -> keras.Model:
    batch = _probe_batch(model, x)
    values = np.asarray(model(batch, training=False))
    _check_output_shape(model.name, values.shape)
    if _are_probabilities(values):
        for layer in reversed(list(model._flatten_layers(include_self=False))):
            softmax = isinstance(layer, keras.layers.Softmax)
            if not (softmax or _is_softmax(getattr(layer, "activation", None))):
                continue
            view = _SubclassedLogits(model, layer)
            # the right head, and the only softmax on the way out
            logits = view(batch, training=False)
            same = np.allclose(tf.nn.softmax(logits), values, atol=1e-5)
            if same and not _are_probabilities(np.asarray(logits)):
                return view
    _probe(model, batch)
    return model
