"""The state of a model that compiled functions hold as constants: a change needs a new one."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import keras
import numpy as np

from tfrobust.classifier.keras_internals import all_layers

__all__ = ["ModelState"]

_PLAIN = (bool, int, str, type(None), bytes, complex)
# longer lists and dictionaries are compared by identity and length only
_LONGEST = 1000
# attributes of Keras that change when a model is built, called or compiled, not what it computes
_BOOKKEEPING = frozenset(
    {
        *vars(keras.layers.Layer(name="bookkeeping")),
        *("compiled", "loss", "optimizer", "history", "jit_compile", "run_eagerly"),
        *("steps_per_execution", "unrolled_steps_per_execution"),
        *("train_function", "test_function", "predict_function", "make_train_function"),
        *("stop_training", "stop_predicting", "stop_evaluating"),
    }
)
_BOOKKEEPING_PREFIXES = ("_self_", "_compile", "_eval", "_loss_tracker", "_tracked", "_build")


class _Identity:
    """Equal to another only if both refer to the same object, which still exists."""

    __slots__ = ("refer",)

    def __init__(self, value: Any):
        try:
            self.refer = weakref.ref(value)
        except TypeError:  # built-in types have no weak references
            number = id(value)
            self.refer = lambda: number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity):
            return False
        value, other_value = self.refer(), other.refer()
        return value is not None and (
            value is other_value or (type(value) is int and value == other_value)
        )

    __hash__ = None


class ModelState:
    """The settings of every layer and the identity of every variable at one moment.

    Values of variables are not part of it: compiled functions read them when they run. All
    attributes of every layer count, so that no list of settings has to be maintained: numbers,
    strings and arrays by value, everything else (activations, tensors, layers) by identity. The
    model is not kept alive.
    """

    def __init__(self, model: keras.Model):
        self.layers = [
            (_Identity(layer), type(layer), _settings(layer)) for layer in all_layers(model)
        ]
        self.variables = [_Identity(variable) for variable in model.variables]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ModelState)
            and self.layers == other.layers
            and self.variables == other.variables
        )

    __hash__ = None

    def after_tracing(self, current: ModelState) -> ModelState:
        """This state with the changes of tracing: attributes that users' layers set in `call`.

        Keras's layers set none in `call`: their changes have another cause and are not taken over.
        """
        if len(self.layers) != len(current.layers):
            return self
        kept = []
        for before, after in zip(self.layers, current.layers, strict=True):
            from_keras = after[1].__module__.split(".")[0] == "keras"
            kept.append(before if from_keras or before[0] != after[0] else after)
        current.layers = kept
        return current


def _settings(layer: keras.layers.Layer) -> list[tuple[str, Any]]:
    private = type(layer).__module__.split(".")[0] != "keras"
    tokens: list[tuple[str, Any]] = [("dtype_policy", layer.dtype_policy.name)]
    for name, value in list(vars(layer).items()):
        if name in _BOOKKEEPING or (name[0] == "_" and not private):
            continue
        if name[0] == "_" and name.startswith(_BOOKKEEPING_PREFIXES):
            continue
        tokens.append((name, value if isinstance(value, _PLAIN) else _token(value)))
    return tokens


def _token(value: Any) -> Any:
    """Equal for equal values only; keeps no objects alive."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return value if value == value else "nan"
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()
        return value.shape, value.dtype.str, digest
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, (list, tuple)) and len(value) <= _LONGEST:
        return tuple(_token(item) for item in value)
    if isinstance(value, dict) and len(value) <= _LONGEST:
        return tuple((_token(key), _token(item)) for key, item in value.items())
    if isinstance(value, (list, dict, tuple)):
        return _Identity(value), len(value)
    return _Identity(value)
