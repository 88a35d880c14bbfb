"""The state of a model that compiled functions hold as constants: a change needs a new one."""

from __future__ import annotations

import decimal
import fractions
import functools
import hashlib
import types
import weakref
from typing import Any

import keras
import numpy as np

from tfrobust.classifier.keras_internals import all_layers

__all__ = ["ModelState"]

_PLAIN = (bool, int, str, type(None), bytes, complex)
_BY_TEXT = (bytearray, slice, range, set, frozenset, fractions.Fraction, decimal.Decimal)
# objects of these packages are compared by identity: variables, tensors, layers, activations
_BY_IDENTITY = ("keras", "tensorflow")
# longer lists and dictionaries are compared by a digest of their text
_LONGEST = 1000
# objects inside one attribute beyond which they are compared by identity
_MOST_OBJECTS = 500
# attributes that change when a layer is built, called or loaded, not what it computes
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
    attributes of every layer count, so that no list of settings has to be maintained: numbers,
    strings, arrays and the attributes of users' objects by value, what belongs to Keras and
    TensorFlow (activations, tensors, layers) by identity. Not seen are changes of classes and of
    global variables. The model is not kept alive.
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
        """This state with the changes of tracing: what users' layers and functions note in `call`.

        Keras's layers set no attributes in `call`: that they have others has another cause, and is
        not taken over.
        """
        if len(self.layers) != len(current.layers):
            return self
        kept = []
        for before, after in zip(self.layers, current.layers, strict=True):
            if before[0] != after[0]:
                kept.append(before)
            elif after[1].__module__.split(".")[0] == "keras":
                kept.append((*before[:2], _noted_in_users_objects(before[2], after[2])))
            else:
                kept.append(after)
        current.layers = kept
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


def _settings(layer: keras.layers.Layer) -> _Tokens:
    from_keras = _package(layer) == "keras"
    ignored = _OF_MODELS if isinstance(layer, keras.Model) else _OF_LAYERS
    tokens: _Tokens = [("dtype_policy", layer.dtype_policy.name)]
    for name, value in list(vars(layer).items()):
        if name in ignored or name.startswith("_self_") or (from_keras and name[0] == "_"):
            continue
        tokens.append((name, value if isinstance(value, _PLAIN) else _token(value, set())))
    return tokens


def _token(value: Any, seen: set[int]) -> Any:
    """Equal for equal values only; keeps no objects alive. `seen`: objects it is inside of."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return value if value == value else "nan"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape, value.dtype.str, _digest(np.ascontiguousarray(value).data)
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, _BY_TEXT):
        return type(value), repr(value)
    if id(value) in seen or len(seen) > _MOST_OBJECTS:
        return _Identity(value)
    seen.add(id(value))
    if isinstance(value, (list, tuple, dict)):
        if len(value) > _LONGEST:
            return len(value), _digest(repr(value).encode())
        items = value.items() if isinstance(value, dict) else value
        return tuple(_token(item, seen) for item in items)
    if _package(value) in _BY_IDENTITY or isinstance(value, (type, types.ModuleType)):
        return _Identity(value)
    return _Identity(value), type(value), _contents(value, seen)


def _contents(value: Any, seen: set[int]) -> tuple[Any, ...]:
    """Of a user's object or function: attributes, defaults, and the variables it closes over."""
    parts = dict(getattr(value, "__dict__", None) or {})
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        parts |= {name: getattr(value, name, None) for name in names if name[:2] != "__"}
    if isinstance(value, types.FunctionType):
        parts |= {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
        parts["closure"] = [_cell(cell) for cell in value.__closure__ or ()]
    elif isinstance(value, types.MethodType):
        parts = {"function": value.__func__, "object": value.__self__}
    elif isinstance(value, functools.partial):
        parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
    return tuple((name, _token(part, seen)) for name, part in parts.items())


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
