"""The state of a model that compiled functions hold as constants: a change needs a new one."""

from __future__ import annotations

import array
import collections
import decimal
import fractions
import functools
import hashlib
import types
import weakref
from typing import Any

import keras
import numpy as np

from tfrobust.classifier.keras_internals import all_layers, call_constants

__all__ = ["ModelState"]

_PLAIN = (bool, int, str, type(None), bytes)
_BY_TEXT = (float, complex, bytearray, array.array, slice, range, set, frozenset)
_BY_TEXT += (fractions.Fraction, decimal.Decimal)
_SEQUENCES = (list, tuple, collections.deque)
# objects of these packages are compared by identity: variables, tensors, activations
_BY_IDENTITY = ("keras", "tensorflow")
# longer lists and dictionaries of plain values are compared by a digest of their text
_LONGEST = 1000
# objects inside one attribute beyond which they are compared by identity
_MOST_OBJECTS = 500
# attributes that change when a layer is built, called or loaded, not what it computes; `_own`
# reads those of them that are settings
_OF_LAYERS = frozenset(
    {
        *vars(keras.layers.Layer(name="bookkeeping")),
        *("is_gptq_calibrated", "is_awq_calibrated"),
    }
)
# the same when a model is compiled, fitted, evaluated or asked for predictions
_OF_MODELS = _OF_LAYERS | frozenset(
    {
        *vars(keras.Model(name="bookkeeping")),
        *("_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator"),
        *("optimizer", "history", "jit_compile", "run_eagerly", "make_train_function"),
        *("stop_training", "stop_predicting", "stop_evaluating"),
    }
)


_Tokens = list[tuple[str, Any]]


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
    attributes of every layer count, so that no list of settings has to be maintained, and so do
    the constants of a graph's operations and calls: numbers, strings, arrays and the attributes of
    users' objects by value, what belongs to Keras and TensorFlow (activations, tensors) by
    identity. Not seen are changes of classes and of global variables. The model is not kept alive.
    """

    def __init__(self, model: keras.Model):
        layers = all_layers(model)
        reader = _Reader(layers)
        self.layers = [(_Identity(each), type(each), reader.settings(each)) for each in layers]
        self.calls = [reader.call(*call) for call in call_constants(layers)]
        self.variables = [_Identity(variable) for variable in model.variables]
        self.epsilon = keras.config.epsilon()  # normalisation layers read it when they are traced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelState) and all(
            getattr(self, part) == getattr(other, part)
            for part in ("layers", "calls", "variables", "epsilon")
        )

    __hash__ = None

    def after_tracing(self, current: ModelState) -> ModelState:
        """This state with the changes of tracing: what users' layers and functions note in `call`.

        Keras's layers set no attributes in `call`, and nothing changes classes or the constants of
        a graph there: that they are others has another cause, and is not taken over.
        """
        if len(self.layers) != len(current.layers):
            return self
        kept = []
        for before, after in zip(self.layers, current.layers, strict=True):
            if before[:2] != after[:2]:
                kept.append(before)
            elif after[1].__module__.split(".")[0] == "keras":
                kept.append((*before[:2], _noted_in_users_objects(before[2], after[2])))
            else:
                kept.append(after)
        current.layers, current.calls, current.epsilon = kept, self.calls, self.epsilon
        return current


def _noted_in_users_objects(before: _Tokens, after: _Tokens) -> _Tokens:
    """`before`, with the contents of the same objects in `after`."""
    later = dict(after)

    def same_object(token: Any, other: Any) -> bool:
        tokens = token, other
        return all(isinstance(t, tuple) and t and isinstance(t[0], _Identity) for t in tokens) and (
            token[0] == other[0]
        )

    return [
        (name, later[name] if same_object(token, later.get(name)) else token)
        for name, token in before
    ]


class _Reader:
    """Turns values into tokens: equal for equal values only; they keep no objects alive."""

    def __init__(self, layers: list[keras.layers.Layer]):
        # their settings are read once, so that an attribute which refers to one is its identity
        self._layers = {id(layer) for layer in layers}

    def settings(self, operation: Any, seen: set[int] | None = None) -> _Tokens:
        """Names and values of the attributes of a layer, or of an operation of `keras.ops`."""
        from_keras = _package(operation) == "keras"
        ignored = _OF_MODELS if isinstance(operation, keras.Model) else _OF_LAYERS
        tokens = _own(operation)
        for name, value in list(vars(operation).items()):
            if name in ignored or name.startswith("_self_") or (from_keras and name[0] == "_"):
                continue
            tokens.append((name, self.token(value, set() if seen is None else seen)))
        return tokens

    def call(self, operation: Any, constants: list[Any]) -> tuple[Any, ...]:
        """A call in a graph: what it was given besides tensors, and the operation's settings."""
        settings = [] if isinstance(operation, keras.layers.Layer) else self.settings(operation)
        values = [self.token(value, set()) for value in constants]
        return _Identity(operation), type(operation), settings, values

    def token(self, value: Any, seen: set[int]) -> Any:
        """`seen`: objects whose contents are read already."""
        kind = type(value)
        if isinstance(value, _PLAIN):
            return kind, value
        if isinstance(value, np.ndarray):
            return self._array(value, seen)
        if isinstance(value, np.generic):
            return kind, value.dtype.str, value.tobytes()
        if isinstance(value, _BY_TEXT):
            return kind, repr(value)  # NaN equals NaN, and 0.0 is not -0.0
        if id(value) in seen or len(seen) > _MOST_OBJECTS:
            return _Identity(value)
        seen.add(id(value))
        if isinstance(value, (*_SEQUENCES, dict)):
            return self._container(value, seen)
        if isinstance(value, keras.layers.Layer):
            return self._layer(value, seen)
        if _package(value) in _BY_IDENTITY or isinstance(value, (type, types.ModuleType)):
            return _Identity(value)
        return _Identity(value), kind, self._contents(value, seen)

    def _array(self, value: np.ndarray, seen: set[int]) -> Any:
        kind, shape, dtype = type(value), value.shape, value.dtype
        further = () if kind is np.ndarray else self._contents(value, seen)  # a mask
        if dtype.hasobject:
            return kind, shape, [self.token(item, seen) for item in value.ravel()], further
        data = np.ascontiguousarray(value.view(np.int64) if dtype.kind in "mM" else value)
        return kind, shape, dtype.str, _digest(data.data), further

    def _container(self, value: Any, seen: set[int]) -> Any:
        kind = type(value)
        items = (
            [item for pair in value.items() for item in pair] if isinstance(value, dict) else value
        )
        if len(value) > _LONGEST and all(isinstance(item, (*_PLAIN, float)) for item in items):
            tokens: Any = _digest(repr(list(items)).encode())
        else:
            tokens = [self.token(item, seen) for item in items]
        own = kind.__module__ not in ("builtins", "collections") and _package(value) != "keras"
        return kind, len(value), tokens, self._contents(value, seen) if own else ()

    def _layer(self, layer: keras.layers.Layer, seen: set[int]) -> Any:
        """A layer; also one that Keras does not know of, inside a function or a plain object."""
        if id(layer) in self._layers:
            return _Identity(layer)
        variables = [_Identity(variable) for variable in layer.variables]
        return _Identity(layer), type(layer), self.settings(layer, seen), variables

    def _contents(self, value: Any, seen: set[int]) -> tuple[Any, ...]:
        """Of a user's object or function: attributes, defaults, and variables it closes over."""
        parts = dict(getattr(value, "__dict__", None) or {})
        for cls in type(value).__mro__:
            slots = vars(cls).get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            parts |= {name: getattr(value, name, None) for name in names if name[:2] != "__"}
        if isinstance(value, types.FunctionType):
            parts |= {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
            parts |= {"closure": [_cell(cell) for cell in value.__closure__ or ()]}
            parts |= {"code": value.__code__}
        elif isinstance(value, types.MethodType):
            parts = {"function": value.__func__, "object": value.__self__}
        elif isinstance(value, functools.partial):
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
        return tuple((name, self.token(part, seen)) for name, part in parts.items())


def _own(operation: Any) -> _Tokens:
    """Settings that Keras keeps among a layer's bookkeeping."""
    if not isinstance(operation, keras.layers.Layer):
        return []
    # the policy that holds for this layer, which a map of policies has by the layer's path
    precision = operation.compute_dtype, operation.variable_dtype, operation.quantization_mode
    flags = operation.trainable, operation.autocast, operation.supports_masking
    return [("precision", (operation.dtype_policy.name, *precision)), ("flags", flags)]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that is not assigned yet
        return None


def _package(value: Any) -> str:
    """The top-level package that defines a function or an object's class."""
    module = getattr(value, "__module__", None)
    if not isinstance(value, types.FunctionType):
        module = type(value).__module__
    return (module or "").split(".")[0]


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
