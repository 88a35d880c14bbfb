"""A Keras graph as a list of steps in topological order, the input of both sets of rules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from tfrobust.classifier import (
    WithoutActivation,
    graph_inputs,
    is_graph,
    logits_model,
    producer,
    takes_training,
)
from tfrobust.errors import TfrobustError

__all__ = ["INPUT", "Step", "UnsupportedLayerError", "graph_steps", "is_plain", "operation_class"]

INPUT = -1
"""The index of the network's input among the steps."""

# layers that fuse an activation, which becomes a separate step
_WITH_ACTIVATION = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)
_WITH_ACTIVATION += (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_WITH_ACTIVATION += (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
# what a subclass may define while it still computes the same as its base class
_NOT_COMPUTATION = {
    *("__init__", "__module__", "__doc__", "__annotations__", "__qualname__", "__dict__"),
    *("__weakref__", "__firstlineno__", "__static_attributes__", "build", "build_from_config"),
    *("get_config", "from_config", "get_build_config", "compute_output_shape"),
    *("compute_output_spec", "save_own_variables", "load_own_variables"),
}


class UnsupportedLayerError(TfrobustError, ValueError):
    """No rule covers a layer; the message names it and the supported ones."""


@dataclass(frozen=True)
class Step:
    """One layer, or one of the two parts of a layer with a fused activation."""

    name: str
    """The layer's name."""
    layer: Any
    """The layer; for the second part of a fused layer its activation."""
    inputs: tuple[int, ...]
    """Indices of the steps whose results it takes; `INPUT` is the network's input."""
    input_shapes: tuple[tuple[int, ...], ...]
    """Without the batch."""
    output_shape: tuple[int, ...]
    bare: bool = False
    """Whether the layer's activation is left out here."""

    @property
    def kind(self) -> str:
        """The layer's class, or the activation's name."""
        if isinstance(self.layer, keras.layers.Layer):
            return type(self.layer).__name__
        return getattr(self.layer, "__name__", type(self.layer).__name__)

    @property
    def function(self) -> Callable[..., Any]:
        """The step in inference mode, of one tensor or a list of them."""
        if not isinstance(self.layer, keras.layers.Layer):
            return self.layer
        layer = WithoutActivation(self.layer) if self.bare else self.layer
        return functools.partial(layer, training=False) if takes_training(layer) else layer

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.input_shapes[0]


def graph_steps(model: keras.Model, x: Any = None) -> tuple[Step, ...]:
    """The steps from the input to the logits in topological order; nested models are unfolded.

    Args:
        model: Sequential or Functional classifier; a final softmax is left out.
        x: a few inputs, needed where the model declares no input shape.

    Raises:
        NotLogitsError: the model has no logits to give.
        UnsupportedLayerError: a subclassed model, or sizes that are not fixed.
    """
    logits = logits_model(model, x)
    if not is_graph(logits):
        raise UnsupportedLayerError(
            f"{model.name} is a subclassed model, whose layers cannot be traversed: bounds need "
            "a Sequential or Functional model that does not override call"
        )
    _check_input(logits)
    steps: list[Step] = []
    kept_alive: list[Any] = []  # so that no id is reused for another tensor meanwhile

    def traverse(tensor: Any, step_of: dict[int, int]) -> int:
        """Depth first: index of the step that produces a tensor; `step_of` is by ids of tensors."""
        if id(tensor) in step_of:
            return step_of[id(tensor)]
        operation, tensors, arguments, output_index = producer(tensor)
        if isinstance(operation, keras.Model):
            sources = _nested_inputs(operation, arguments)
            indices = [traverse(source, step_of) for source in sources]
            # a separate scope: the same model may be called again on other tensors
            scope = {id(t): index for t, index in zip(operation.inputs, indices, strict=True)}
            result = traverse(operation.outputs[output_index], scope)
        else:
            _check_call(operation, arguments)
            inputs = [traverse(source, step_of) for source in tensors]
            result = _append(steps, operation, tuple(inputs), tensors, tensor)
        kept_alive.append(tensor)
        step_of[id(tensor)] = result
        return result

    traverse(logits.outputs[0], {id(logits.inputs[0]): INPUT})
    if not steps:
        raise UnsupportedLayerError(f"{model.name} has no layers between its input and its output")
    return tuple(steps)


def is_plain(layer: Any, *classes: type) -> bool:
    """Whether a layer is of one of the classes, or of a subclass that computes the same."""
    if "call" in getattr(layer, "__dict__", {}):
        return False
    lineage = type(layer).__mro__
    for base in set(classes).intersection(lineage):
        defined = {name for cls in lineage[: lineage.index(base)] for name in vars(cls)}
        if not any(hasattr(base, name) for name in defined - _NOT_COMPUTATION):
            return True
    return False


def operation_class(function: Callable[..., Any], tensors: int = 1) -> type:
    """The class of the operation that a function of `keras.ops` adds to a Functional model."""
    result = function(*(keras.KerasTensor((1, 2)) for _ in range(tensors)))
    return type(producer(result).operation)


def _append(
    steps: list[Step],
    operation: Any,
    inputs: tuple[int, ...],
    tensors: list[Any],
    output: Any,
) -> int:
    """Append the steps of one layer; returns the index of its result."""
    view = isinstance(operation, WithoutActivation)
    layer = operation.layer if view else operation
    bare = view and getattr(layer, "activation", None) is not None
    shapes = tuple(_sizes(operation.name, tensor.shape) for tensor in tensors)
    if isinstance(layer, keras.layers.InputLayer):
        return inputs[0] if inputs else INPUT
    output_shape = _sizes(operation.name, output.shape)
    activation = None if bare or not is_plain(layer, *_WITH_ACTIVATION) else layer.activation
    fused = activation not in (None, keras.activations.linear)
    steps.append(Step(layer.name, layer, inputs, shapes, output_shape, bare or fused))
    if fused:
        steps.append(Step(layer.name, activation, (len(steps) - 1,), (output_shape,), output_shape))
    return len(steps) - 1


def _nested_inputs(model: keras.Model, arguments: Any) -> list[Any]:
    """The tensors that a nested model was called with, in the order of its inputs."""
    if not is_graph(model):
        raise UnsupportedLayerError(
            f"the nested model {model.name} is subclassed and cannot be traversed: make it "
            "Sequential or Functional"
        )
    _check_input(model)
    tensors = graph_inputs(model, arguments)
    if tensors is None:
        raise UnsupportedLayerError(
            f"the nested model {model.name} was called with tensors that do not correspond to its "
            "inputs one to one: call it with exactly its inputs, in shapes that they have"
        )
    _check_call(model, arguments, tensors)
    return tensors


def _check_input(model: keras.Model) -> None:
    """Refuse an input type to which Keras would round: steps do not cast their input."""
    for tensor in model.inputs:
        if keras.backend.standardize_dtype(tensor.dtype) not in ("float32", "float64"):
            raise UnsupportedLayerError(
                f"{model.name} takes {tensor.dtype}, to which inputs are rounded: bounds need a "
                "float32 input"
            )


def _check_call(operation: Any, arguments: Any, inputs: list[Any] | None = None) -> None:
    """Refuse a call with more than input tensors: steps pass nothing else to a layer.

    `inputs`: the tensors that the call's first argument may hold in any structure; else it is one
    tensor, or a list of them.
    """
    if not isinstance(operation, keras.layers.Layer):
        return
    kind = type(operation)
    positional, keywords = list(arguments.args), dict(arguments.kwargs)
    # Keras records the default too, which is False or None for its own layers and for models
    own = kind.__module__.startswith("keras.") or isinstance(operation, keras.Model)
    if keywords.pop("training", False) and own:
        raise UnsupportedLayerError(
            f"layer {operation.name!r} ({kind.__name__}) was called with training=True: "
            "bounds are those of the network in inference mode"
        )
    # the inputs by name
    first = positional.pop(0) if positional else keywords.pop(next(iter(keywords), ""), None)
    # a mask of a list of inputs is a list
    extra = [value for value in keras.tree.flatten((positional, keywords)) if value is not None]
    constants = (
        inputs is None
        and isinstance(first, (list, tuple))
        and not all(isinstance(value, keras.KerasTensor) for value in first)
    )
    if extra or constants:
        raise UnsupportedLayerError(
            f"layer {operation.name!r} ({kind.__name__}) was called with more than its "
            "input tensors (one, or a list of them): bounds do not support such arguments"
        )


def _sizes(name: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape)[1:]
    if any(size is None for size in sizes):
        raise UnsupportedLayerError(
            f"layer {name!r} takes or returns {tuple(shape)}: bounds need fixed sizes. Build the "
            "model with an input shape without None."
        )
    return tuple(int(size) for size in sizes)
