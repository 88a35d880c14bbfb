"""What compiled functions of a model take in as constants, and so must be compiled again for."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import keras
import numpy as np

from tfrobust.classifier.keras_internals import all_layers

__all__ = ["ModelState"]

_PLAIN = (bool, int, str, type(None), bytes, complex)
# longer lists and dictionaries are told apart by identity and length alone
_LONGEST = 1000
# attributes of Keras's that change while a model is built, called or compiled, computing the same
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
    """Equal to another only if both are of one object that still exists."""

    __slots__ = ("refer",)

    def __init__(self, value: Any):
        try:
            self.refer = weakref.ref(value)
        except TypeError:  # of a built-in type: its number has to do
            number = id(value)
            self.refer = lambda: number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity):
            return False
        value, same = self.refer(), other.refer()
        return value is not None and (value is same or (type(value) is int and value == same))

    __hash__ = None


class ModelState:
    """The settings of every layer and the identity of every variable at one moment.

    Values of variables are no part of it: compiled functions read them when they run. Of every
    layer all attributes count, so that no list of settings has to be kept: numbers, texts and
    arrays by value, all else (activations, tensors, layers) by identity. The model is not kept
    alive.
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

    def after_tracing(self, now: ModelState) -> ModelState:
        """This state with what tracing itself changed: attributes that users' layers set in `call`.

        Keras's own layers set none, so that a change of theirs was made by somebody else.
        """
        if len(self.layers) != len(now.layers):
            return self
        kept = []
        for before, after in zip(self.layers, now.layers, strict=True):
            from_keras = after[1].__module__.split(".")[0] == "keras"
            kept.append(before if from_keras or before[0] != after[0] else after)
        now.layers = kept
        return now


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
    """Something that equals the token of the same value only, and does not keep objects alive."""
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
        return tuple(_token(each) for each in value)
    if isinstance(value, dict) and len(value) <= _LONGEST:
        return tuple((_token(key), _token(each)) for key, each in value.items())
    if isinstance(value, (list, dict, tuple)):
        return _Identity(value), len(value)
    return _Identity(value)
