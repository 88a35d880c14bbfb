"""Every use of names that Keras keeps private: what a new version of Keras may change is here.

Layers of users' models are never modified. Where one of Keras's own methods has to compute
something else it is replaced on Keras's class, for the calling thread and the duration of a block.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

__all__ = [
    "Producer",
    "all_layers",
    "exact_batch_statistics",
    "local_variable",
    "producer",
    "replaced_method",
    "takes_training",
    "with_attributes",
]


class Producer(NamedTuple):
    """The call that a symbolic tensor of a Functional model comes from."""

    operation: keras.Operation
    """A layer, a nested model, or an operation of `keras.ops`."""
    inputs: list[Any]
    """Symbolic tensors that it was called on."""
    arguments: Any
    """`args` and `kwargs` of the call."""
    index: int
    """Which of the call's outputs the tensor is."""


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The model itself and the layers inside it at any depth, each once."""
    return model._flatten_layers()


def producer(tensor: Any) -> Producer:
    """Where a symbolic tensor (`keras.KerasTensor`) comes from."""
    operation, node_index, tensor_index = tensor._keras_history
    node = operation._inbound_nodes[node_index]
    return Producer(operation, node.input_tensors, node.arguments, tensor_index)


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether the layer's `call` has an argument `training`."""
    return layer._call_has_training_arg


def with_attributes(layer: keras.layers.Layer, **attributes: Any) -> keras.layers.Layer:
    """The same layer seen with other attributes: `with_attributes(dense, activation=None)`.

    An object of a subclass that shares the layer's `__dict__`, so that weights, settings and
    `super()` are the layer's own, which itself is not modified. Meant for calling `call` on it.
    """
    fixed = {name: property(lambda _, value=value: value) for name, value in attributes.items()}
    kind = type(layer)
    # object's own methods: Keras's would build, track or serialize a new layer
    alias = object.__new__(type(kind)(kind.__name__, (kind,), {"__module__": __name__, **fixed}))
    object.__setattr__(alias, "__dict__", vars(layer))
    return alias


def local_variable(error: BaseException, name: str) -> Any:
    """A local variable of the innermost function that has it where `error` was raised; else None.

    Keras's `get_file` tells neither address nor path of a download that failed, but holds both.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    values = [frame.f_locals[name] for frame in frames if name in frame.f_locals]
    return values[-1] if values else None


_PATCH_LOCK = threading.Lock()
# blocks that use a replaced method, over all threads: (class, name) to (original, count)
_USERS: dict[tuple[type, str], tuple[Callable[..., Any], int]] = {}
# of this thread: (class, name) to the replacements in force, the innermost last
_REPLACED = threading.local()


@contextlib.contextmanager
def replaced_method(cls: type, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """While in the block, and in this thread only, `cls.name` is `replacement`.

    The class holds a dispatcher as long as some thread is in such a block; blocks are counted, and
    the last one to be left puts the original back. Other threads get the original all the time.

    Args:
        cls: a class of Keras that defines the method itself.
        name: the method.
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


def _dispatcher(key: tuple[type, str], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)  # Keras reads the signature of `call` when a layer is made
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = vars(_REPLACED).get(key)
        if not active:
            return original(self, *args, **kwargs)
        return active[-1](original, self, *args, **kwargs)

    return method


def exact_batch_statistics() -> contextlib.AbstractContextManager[None]:
    """While in the block, batch normalisation in training mode has a right second derivative.

    `tf.nn.moments` takes the variance as mean((x - stop_gradient(mean))^2). The derivative that it
    stops, -2 mean(x - mean), is zero, so that the first derivative is right all the same. The
    second, which every penalty on input gradients needs, is not: it lacks the derivative of that
    zero, -2 d mean(x - mean). With few values per channel it was seen to be some percent off.

    Holds for models called, or traced, in the block by the thread that entered it.
    """
    return replaced_method(keras.layers.BatchNormalization, "_moments", _exact_moments)


def _exact_moments(
    original: Callable[..., Any], layer: keras.layers.BatchNormalization, inputs: Any, mask: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    if mask is not None:  # Keras's own formula there stops no gradient
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
    """In a graph: the mean over all devices, each of which has as many examples."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce("MEAN", value) if context is not None else value
