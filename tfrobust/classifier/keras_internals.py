"""All uses of private names of Keras, which a new version of it may change.

Layers of users' models are never modified. Where a method of Keras has to compute something else,
it is replaced on Keras's class, for the calling thread and the duration of a block.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

__all__ = [
    "FUNCTIONAL",
    "Producer",
    "all_layers",
    "applied",
    "call_constants",
    "exact_batch_statistics",
    "graph_inputs",
    "local_variable",
    "producer",
    "replaced_method",
    "single_precision",
    "takes_training",
    "with_attributes",
]


class Producer(NamedTuple):
    """The call that produced a symbolic tensor of a Functional model."""

    operation: keras.Operation
    """A layer, a nested model, or an operation of `keras.ops`."""
    inputs: list[Any]
    """Symbolic tensors, its arguments."""
    arguments: Any
    """`args` and `kwargs` of the call."""
    index: int
    """Which of the call's outputs the tensor is."""


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The model itself and the layers inside it at any depth, each once."""
    return model._flatten_layers()


def producer(tensor: Any) -> Producer:
    """The call that produced a symbolic tensor (`keras.KerasTensor`)."""
    operation, node_index, tensor_index = tensor._keras_history
    node = operation._inbound_nodes[node_index]
    return Producer(operation, node.input_tensors, node.arguments, tensor_index)


def applied(operation: keras.Operation, tensor: Any) -> Any:
    """The symbolic result of a new operation on a tensor of a user's graph.

    Keras notes every such call on the layer whose result the tensor is, for good; nothing reads
    these notes, and they are removed here. The operation must not be the user's.
    """
    result = operation(tensor)
    tensor._keras_history.operation._outbound_nodes.remove(operation._inbound_nodes[-1])
    return result


def graph_inputs(model: keras.Model, arguments: Any) -> list[Any] | None:
    """The symbolic tensors with which a graph of layers was called, in the order of its inputs.

    As Keras maps them: a dictionary by the names of the inputs, nested structures in order. None
    where Keras would do more than hand tensors on: where it drops some, or changes their rank.

    Args:
        model: Sequential or Functional.
        arguments: of the call, from `producer`.
    """
    given = arguments.args[0] if arguments.args else arguments.kwargs.get("inputs")
    functional = model._functional if isinstance(model, keras.Sequential) else model
    declared = functional._inputs_struct
    if isinstance(given, dict) and not isinstance(declared, dict):
        given = [given[tensor.name] for tensor in functional.inputs]
    elif isinstance(given, dict) and set(given) != set(declared):
        return None
    tensors = keras.tree.flatten(given)
    if len(tensors) != len(functional.inputs):
        return None
    for tensor, expected in zip(tensors, functional.inputs, strict=True):
        if not isinstance(tensor, keras.KerasTensor) or len(tensor.shape) != len(expected.shape):
            return None
    return tensors


def call_constants(layers: list[keras.layers.Layer]) -> list[tuple[keras.Operation, list[Any]]]:
    """What the calls inside graphs were given besides tensors: an array, a mask, a factor.

    Args:
        layers: all layers of a model, the graphs among them.

    Returns:
        for each call with such arguments, or of an operation of `keras.ops`: the operation, and
        the arguments.
    """
    graphs = [
        layer._functional if isinstance(layer, keras.Sequential) else layer for layer in layers
    ]
    calls = []
    for graph in graphs:
        levels = graph._nodes_by_depth.values() if isinstance(graph, FUNCTIONAL) else ()
        for node in itertools.chain(*levels):
            constants = [
                value
                for value in node.arguments._flat_arguments
                if value is not None and not isinstance(value, keras.KerasTensor)
            ]
            if constants or not isinstance(node.operation, keras.layers.Layer):
                calls.append((node.operation, constants))
    return calls


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether the layer's `call` has an argument `training`."""
    return layer._call_has_training_arg


def with_attributes(layer: keras.layers.Layer, **attributes: Any) -> keras.layers.Layer:
    """An alias of a layer with other attributes: `with_attributes(dense, activation=None)`.

    The alias is of a subclass and shares the layer's `__dict__`: it has the layer's weights,
    settings and `super()`. The layer is not modified. Meant for calling the alias's `call`.
    """
    overridden = {
        name: property(lambda _, value=value: value) for name, value in attributes.items()
    }
    layer_type = type(layer)
    # methods of `object`: those of Keras would build, track or serialize a new layer
    alias = object.__new__(
        type(layer_type)(layer_type.__name__, (layer_type,), {"__module__": __name__, **overridden})
    )
    object.__setattr__(alias, "__dict__", vars(layer))
    return alias


def local_variable(error: BaseException, name: str) -> Any:
    """A local variable of the innermost function on the traceback of `error` that has it, or None.

    Errors of Keras's `get_file` name neither address nor path of a failed download; its local
    variables hold both.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    values = [frame.f_locals[name] for frame in frames if name in frame.f_locals]
    return values[-1] if values else None


_ANY = keras.Input((1,))
# the class of Functional models, which has no public name
FUNCTIONAL = type(keras.Model(_ANY, _ANY))
_HALF = ("float16", "bfloat16")
_PATCH_LOCK = threading.Lock()
# (class, name) to (original, number of blocks in which it is replaced, over all threads)
_USERS: dict[tuple[type, str], tuple[Callable[..., Any], int]] = {}
# per thread, (class, name) to the active replacements, the innermost last
_REPLACED = threading.local()


@contextlib.contextmanager
def replaced_method(cls: type, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """While in the block, and in this thread only, `cls.name` is `replacement`.

    The class holds a dispatcher while any thread is in such a block. Blocks are counted: the last
    one restores the original. Other threads always call the original.

    Args:
        cls: a class of Keras that defines the method itself.
        name: the method, or a property.
        replacement: takes the original function, then the method's arguments, `self` first.
    """
    key = cls, name
    with _PATCH_LOCK:
        original, users = _USERS.get(key) or (vars(cls)[name], 0)
        if not users:
            setattr(cls, name, _dispatcher(key, original))
        _USERS[key] = original, users + 1
    active = vars(_REPLACED).setdefault(key, [])
    active.append(replacement)
    try:
        yield
    finally:
        active.pop()
        with _PATCH_LOCK:
            original, users = _USERS.pop(key)
            if users > 1:
                _USERS[key] = original, users - 1
            else:
                setattr(cls, name, original)


def _dispatcher(key: tuple[type, str], original: Any) -> Any:
    if isinstance(original, property):
        return property(_dispatcher(key, original.fget), original.fset)

    @functools.wraps(original)  # Keras reads the signature of `call` when a layer is created
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = vars(_REPLACED).get(key)
        if not active:
            return original(self, *args, **kwargs)
        return active[-1](original, self, *args, **kwargs)

    return method


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """While in the block, layers that compute in half precision compute in float32.

    Holds for models called, or traced, in the block by the thread that entered it. Weights are
    float32 in mixed precision, so that nothing is converted. Quantized layers are left as they are.
    """
    layer_type, normalization = keras.layers.Layer, keras.layers.Normalization

    def is_half(layer: keras.layers.Layer) -> bool:
        policy = layer._dtype_policy
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap) and layer.path:
            policy = policy[layer.path]
        return policy.compute_dtype in _HALF and policy.quantization_mode is None

    def dtype_policy(original: Callable[..., Any], layer: keras.layers.Layer) -> Any:
        return keras.DTypePolicy("float32") if is_half(layer) else original(layer)

    def compute_dtype(original: Callable[..., Any], layer: keras.layers.Layer) -> str:
        return "float32" if is_half(layer) else original(layer)

    def call(original: Callable[..., Any], layer: keras.layers.Normalization, inputs: Any) -> Any:
        return original(_with_exact_moments(layer) if is_half(layer) else layer, inputs)

    # a Sequential model without `keras.Input` declares the precision of its first layer
    def input_dtype(original: Callable[..., Any], model: keras.Sequential) -> str:
        dtype = original(model)
        return "float32" if dtype in _HALF else dtype

    with (
        replaced_method(layer_type, "dtype_policy", dtype_policy),
        replaced_method(layer_type, "compute_dtype", compute_dtype),
        replaced_method(keras.Sequential, "input_dtype", input_dtype),
        replaced_method(FUNCTIONAL, "_convert_inputs_to_tensors", _uncast_inputs),
        replaced_method(normalization, "call", call),
    ):
        yield


def _uncast_inputs(
    original: Callable[..., Any], model: keras.Model, inputs: list[Any]
) -> list[Any]:
    """Inputs of a graph, in single precision also where it declares half precision."""
    return [
        keras.ops.cast(given, "float32") if getattr(cast, "dtype", None) in _HALF else cast
        for given, cast in zip(inputs, original(model, inputs), strict=True)
    ]


def _with_exact_moments(layer: keras.layers.Normalization) -> keras.layers.Layer:
    """The layer with its mean and variance in single precision; it keeps them rounded."""
    given = layer.input_mean is not None
    mean = layer.input_mean if given else layer.adapt_mean
    variance = layer.input_variance if given else layer.adapt_variance
    broadcast = [
        tf.broadcast_to(keras.ops.convert_to_tensor(value, "float32"), layer._mean_and_var_shape)
        for value in (mean, variance)
    ]
    mean, variance = (tf.reshape(value, layer._broadcast_shape) for value in broadcast)
    return with_attributes(layer, mean=mean, variance=variance)


def exact_batch_statistics() -> contextlib.AbstractContextManager[None]:
    """While in the block, batch normalisation in training mode has a correct second derivative.

    `tf.nn.moments` computes the variance as mean((x - stop_gradient(mean))^2). The derivative that
    it stops, -2 mean(x - mean), is zero, so that the first derivative is correct. The second, which
    every penalty on input gradients needs, lacks the derivative of that zero, -2 d mean(x - mean).
    With few values per channel its error was a few percent.

    Holds for models called, or traced, in the block by the thread that entered it.
    """
    return replaced_method(keras.layers.BatchNormalization, "_moments", _exact_moments)


def _exact_moments(
    original: Callable[..., Any], layer: keras.layers.BatchNormalization, inputs: Any, mask: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    if mask is not None:  # Keras's formula for this case stops no gradient
        return original(layer, inputs, mask)
    compute_dtype = inputs.dtype if inputs.dtype.size > 2 else tf.float32
    values = tf.cast(inputs, compute_dtype)
    axes = list(layer._reduction_axes)
    mean = tf.reduce_mean(values, axes, keepdims=True)
    if layer.synchronized:
        mean = _over_replicas(mean)
    variance = tf.reduce_mean(tf.square(values - mean), axes)
    if layer.synchronized:
        variance = _over_replicas(variance)
    return tf.cast(tf.squeeze(mean, axes), inputs.dtype), tf.cast(variance, inputs.dtype)


def _over_replicas(value: tf.Tensor) -> tf.Tensor:
    """In a graph: the mean over all devices, which have equally many examples."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce("MEAN", value) if context is not None else value
