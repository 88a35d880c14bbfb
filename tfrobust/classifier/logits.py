"""The logits view of any Keras classifier: the same weights without the final softmax.

Margins, gradients and bounds are statements about logits. A view shares the classifier's
variables, so that training one trains both. No layer of the classifier is modified, and none
refers to a view: a graph of layers is traversed back to its softmax and rebuilt without it; any
other model is traced, and the traced graph is traversed back to TensorFlow's softmax operation.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier.checks import (
    ADVICE,
    NotLogitsError,
    check_logits,
    check_output_shape,
    check_view,
    has_fixed_shape,
    probe_batch,
)
from tfrobust.classifier.inputs import model_input_shape
from tfrobust.classifier.keras_internals import (
    FUNCTIONAL,
    applied,
    graph_inputs,
    producer,
    takes_training,
    with_attributes,
)
from tfrobust.classifier.traced import TracedModel, ends_in_softmax
from tfrobust.errors import InputTypeError
from tfrobust.layers import SoftmaxAsLogits

__all__ = ["NotLogitsError", "Views", "WithoutActivation", "is_graph", "logits_model", "views"]

# these only reshape: a softmax before them can be dropped, and they are applied to its input
_RESHAPING = ("Flatten", "Reshape", "Dropout", "Identity", "Squeeze")
_NOT_LOGITS = ("ReLU", "LeakyReLU", "PReLU", "ELU", "Sigmoid", "Tanh", "Softplus")
# activations of a convolution before global average pooling whose averages have no upper bound:
# these are logits even where those of an untrained model all lie between 0 and 1 by chance
_UNBOUNDED = (None, keras.activations.linear, keras.activations.relu)
_SOFTMAXES = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
# created by `views`, so known to be logits
_VIEWS: weakref.WeakSet[keras.Model] = weakref.WeakSet()
# Sequential and Functional; the latter has no public name
_GRAPHS = (keras.Sequential, FUNCTIONAL)


class Views(NamedTuple):
    """Models that share a classifier's weights, and what is known of them."""

    logits: keras.Model
    outputs: keras.Model
    """Of the classifier's own output: with its softmax."""
    classes: int
    stripped: bool
    """Whether a softmax was left out, so that softmax(logits) is the output."""
    rebuilt: bool
    """Whether the logits are computed in another way than by calling the classifier."""


@keras.saving.register_keras_serializable("tfrobust")
class WithoutActivation(keras.layers.Layer):
    """A built layer without its activation, sharing its variables and its dtype policy.

    A layer that has none computes what it did: a second place in a graph that the layer itself
    takes no notice of.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        keywords = {"training": training} if takes_training(self.layer) else {}
        linear = with_attributes(self.layer, activation=keras.activations.linear)
        quantized = getattr(self.layer, "quantization_mode", None) is not None
        return (linear.quantized_call if quantized else linear.call)(inputs, **keywords)

    def quantized_call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.call(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WithoutActivation:
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


def is_graph(model: keras.Model) -> bool:
    """Whether a model computes its graph of layers: Sequential and Functional models.

    False where a subclass, or the object, overrides `call`, or a subclass `__call__`.
    """
    if "call" in vars(model) or not getattr(model, "outputs", None):
        return False
    kind = type(model)
    return any(kind.call is base.call and kind.__call__ is base.__call__ for base in _GRAPHS)


def logits_model(model: keras.Model, x: Any = None) -> keras.Model:
    """A Keras model of `model`'s logits, sharing its weights.

    A softmax at the end, as a layer or fused into one, also inside a nested model, is left out; a
    model that already returns logits is returned unchanged, and so is a graph of layers that ends
    in `tfrobust.layers.SoftmaxAsLogits`, whose probabilities are taken for logits. Where a softmax
    was left out, softmax(logits) is compared with the model's output, at `x` or at random inputs.
    The model and its layers are left as they are, whatever is done with the view; only a Sequential
    model without an input is built, for the shape of `x`.

    Args:
        model: classifier with output (batch, classes): Sequential, Functional or subclassed.
        x: a few inputs (batch, ...), needed only where the model declares no input shape.

    Raises:
        TypeError: not a Keras model.
        NotLogitsError: one output unit, several outputs, or an output that is not logits and
            whose logits cannot be found.
    """
    if isinstance(model, keras.Model) and model in _VIEWS:
        return model
    if _buildable(model, x):
        output = _graph_logits(model, x)
        if output is model.outputs[0] and not isinstance(getattr(model, "output", None), dict):
            return model
        return _submodel(model, output, "_logits")
    strip, _ = ends_in_softmax(model, x)
    return TracedModel(model, strip=True, weakly=False) if strip else model


def views(model: keras.Model, x: Any = None) -> Views:
    """Models of `model`'s logits and of its own output.

    Neither view keeps `model` alive. Arguments and errors are those of `logits_model`.
    """
    if _buildable(model, x):
        tensor = _graph_logits(model, x)
        logits = _submodel(model, tensor, "_logits")
        _VIEWS.add(logits)
        outputs = _submodel(model, model.outputs[0], "_outputs")
        classes = logits.outputs[0].shape[-1]
        if classes is None:
            classes = logits(probe_batch(model, x)[:1], training=False).shape[-1]
        return Views(logits, outputs, int(classes), tensor is not model.outputs[0], rebuilt=True)
    strip, classes = ends_in_softmax(model, x)
    logits, outputs = (TracedModel(model, strip=cut, weakly=True) for cut in (strip, False))
    return Views(logits, outputs, classes, strip, rebuilt=strip)


def _buildable(model: Any, x: Any) -> bool:
    """Whether the model is a graph of layers; builds a Sequential one where that is possible."""
    if not isinstance(model, keras.Model):
        raise InputTypeError(f"expected a keras.Model, got {type(model).__name__}")
    if isinstance(model, keras.Sequential) and model.layers and not model.built:
        shape = model_input_shape(model.layers[0]) if x is None else np.shape(x)[1:]
        if shape is not None:
            model.build((None, *shape))
    return is_graph(model)


def _submodel(model: keras.Model, output: Any, suffix: str) -> keras.Model:
    view = keras.Model(model.inputs[0], output, name=f"{model.name}{suffix}")
    view.dtype_policy = model.dtype_policy  # else the one set globally
    return view


def _graph_logits(model: keras.Model, x: Any) -> Any:
    """The symbolic tensor of a graph's logits; the graph's output if it holds them."""
    if len(model.outputs) != 1 or len(model.inputs) != 1:
        raise NotLogitsError(
            f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "one of each is needed"
        )
    check_output_shape(model.name, tuple(model.outputs[0].shape))
    logits = _without_softmax(model.outputs[0], model, x)
    if logits is not model.outputs[0] and (x is not None or has_fixed_shape(model)):
        both = keras.Model(model.inputs[0], [logits, model.outputs[0]], name="both")
        values = both(probe_batch(model, x), training=False)
        check_view(model, *values, stripped=True, shared=True)
    return logits


def _without_softmax(output: Any, model: keras.Model, x: Any) -> Any:
    """The symbolic tensor of the logits below `output`; `output` itself if it holds them."""
    layer, inputs, arguments, _ = producer(output)
    kind = _keras_kind(layer)
    activation = getattr(layer, "activation", None)
    if kind == "Softmax":
        _check_softmax_layer(model, layer, inputs[0], arguments)
        return inputs[0]
    if kind == "Activation" and _is_softmax(activation):
        _check_normalised_axis(model, layer, output)
        return inputs[0]
    if isinstance(layer, keras.Model):
        return _without_nested_softmax(output, model, x)
    if kind in _RESHAPING:
        source = _without_softmax(inputs[0], model, x)
        if source is inputs[0]:
            return output
        _check_arguments(model, layer, inputs, arguments)
        return applied(_copy_of(layer), source)
    if isinstance(layer, (WithoutActivation, SoftmaxAsLogits)):
        return output
    if _is_softmax(activation):
        _check_normalised_axis(model, layer, output)
        if not kind:  # a user's class: `_graph_logits` compares values, so inputs are needed
            probe_batch(model, x)
        _check_arguments(model, layer, inputs, arguments)
        return applied(_copy_of(layer), inputs[0])
    if kind in _NOT_LOGITS or activation not in (None, keras.activations.linear):
        name = getattr(activation, "__name__", kind or type(layer).__name__)
        raise NotLogitsError(
            f"{model.name} ends in {name} (layer {layer.name!r}); its outputs are not logits. "
            + ADVICE
        )
    if kind == "GlobalAveragePooling2D" and _is_convolution(inputs[0], _UNBOUNDED):
        return output
    if kind not in ("Dense", "Conv2D", "Conv1D", "Add", "BatchNormalization"):
        values = np.asarray(model(probe_batch(model, x), training=False))
        check_logits(model, values)
    return output


def _without_nested_softmax(output: Any, model: keras.Model, x: Any) -> Any:
    """The same, where `output` is that of a model inside `model`."""
    nested, inputs, arguments, _ = producer(output)
    tensors = graph_inputs(nested, arguments) if is_graph(nested) else inputs
    if tensors is None or len(tensors) != 1:
        raise NotLogitsError(
            f"{model.name} ends in the model {nested.name}, which is not called with one tensor "
            "for its one input: end in layers instead, or in a model of one input"
        )
    nested_x = None if x is None else _values_at(tensors[0], model, x)
    view = logits_model(nested, nested_x)
    if view is nested:
        return output
    if not is_graph(nested):  # in a dictionary, say, of which its `call` takes what it needs
        _check_arguments(model, nested, inputs, arguments, plain=True)
    _check_arguments(model, nested, tensors, arguments)
    return applied(view, tensors[0])


def _check_arguments(
    model: keras.Model, layer: Any, inputs: list[Any], arguments: Any, *, plain: bool = False
) -> None:
    """Refuse to leave a softmax out of a layer that is called with more than its input.

    Keras notes as an argument also a mask that comes with the input. `training` is no matter:
    views set it, for all layers.
    """
    keywords = {name: value for name, value in arguments.kwargs.items() if name != "training"}
    given = (*arguments.args, *keywords.values())
    values = given if plain else keras.tree.flatten(given)
    if any(value is not None and value is not inputs[0] for value in values):
        raise NotLogitsError(
            f"{model.name} ends in a softmax, and layer {layer.name!r} there is called with more "
            "than its input, a mask for instance. " + ADVICE
        )


def _copy_of(operation: Any) -> Any:
    """The same layer, without an activation, or operation, for a place in another graph."""
    if isinstance(operation, keras.layers.Layer):
        return WithoutActivation(operation, name=f"{operation.name}_logits")
    name = f"{operation.name}_logits"
    return type(operation).from_config({**operation.get_config(), "name": name})


def _keras_kind(layer: Any) -> str:
    """Name of a class of Keras; empty for all others."""
    cls = type(layer)
    return cls.__name__ if cls.__module__.split(".")[0] == "keras" else ""


def _is_convolution(tensor: Any, activations: tuple[Any, ...]) -> bool:
    layer = producer(tensor).operation
    return isinstance(layer, keras.layers.Conv2D) and layer.activation in activations


def _is_softmax(activation: Any) -> bool:
    return any(activation is softmax for softmax in _SOFTMAXES)


def _check_softmax_layer(model: keras.Model, layer: Any, logits: Any, arguments: Any) -> None:
    axis = layer.axis
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
    if axes not in ((-1,), (len(logits.shape) - 1,)):
        raise NotLogitsError(
            f"{model.name} ends in a softmax over axis {layer.axis} (layer {layer.name!r}), which "
            "is not that of the classes. " + ADVICE
        )
    masks = [*arguments.args[1:], arguments.kwargs.get("mask")]
    if any(mask is not None for mask in masks) and isinstance(layer, keras.layers.Layer):
        raise NotLogitsError(
            f"{model.name} ends in a softmax with a mask (layer {layer.name!r}), which changes "
            "the logits that it is given. " + ADVICE
        )
    _check_normalised_axis(model, layer, logits)


def _check_normalised_axis(model: keras.Model, layer: Any, tensor: Any) -> None:
    """Refuse a softmax unless the one axis that it normalises holds all outputs."""
    sizes = tuple(tensor.shape)[1:]
    if any(size != 1 for size in sizes[:-1]):
        raise NotLogitsError(
            f"{model.name} ends in a softmax of shape {tuple(tensor.shape)} (layer "
            f"{layer.name!r}): several groups of outputs are normalised separately. " + ADVICE
        )


def _values_at(tensor: Any, model: keras.Model, x: Any) -> Any:
    """Values of a symbolic tensor inside `model` for the first few inputs."""
    if tensor is model.inputs[0]:
        return x
    inner = keras.Model(model.inputs[0], tensor, name="inner")
    return inner(probe_batch(model, x), training=False)
