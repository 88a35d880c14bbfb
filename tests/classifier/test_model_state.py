"""Everything that a compiled graph holds as a constant is seen when it changes; nothing else is."""

import array
import collections
import decimal
import fractions
import functools
import gc
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.classifier import predict_logits, producer
from tfrobust.classifier.state import ModelState, _Identity

layers = keras.layers


class Holder(layers.Layer):
    """A user's layer with an attribute."""

    def __init__(self, held=None, **kwargs):
        super().__init__(**kwargs)
        self.held = held

    def call(self, inputs):
        return inputs * 1.0


def model_with(*middle):
    return keras.Sequential([keras.Input((4,)), *middle, layers.Dense(3)])


def seen(model, change):
    """Whether a change makes another state; without it the state is the same."""
    before = ModelState(model)
    assert before == ModelState(model)
    change(model)
    return before != ModelState(model)


class Slotted:
    __slots__ = ("gain", "other")

    def __init__(self):
        self.gain = 1.0  # `other` has no value


class OneSlot:
    __slots__ = "gain"

    def __init__(self):
        self.gain = 1.0


class Inherited(Slotted):
    __slots__ = ()


class Settings(dict):
    """A dictionary with an attribute."""

    gain = 1.0


class Record(collections.namedtuple("Record", "first")):
    """With a `__dict__`, unlike its base."""


class Calling:
    def __init__(self):
        self.gain = 1.0

    def __call__(self, x):
        return self.gain * x

    def method(self, x):
        return self.gain * x

    def other(self, x):
        return x


def closing_over(value):
    return lambda x: value * x


def with_defaults(x, gain=(1.0,), *, factor=1.0):
    return gain, factor, x


def fresh_function():
    return types.FunctionType(
        with_defaults.__code__, {}, "fresh", (([1.0],)), None
    )  # one that no other test shares


def set_gain(held):
    held.gain = 3.0


def item(index, value):
    return lambda held: held.__setitem__(index, value)


# what a layer refers to, and how it changes without being replaced
IN_PLACE = {
    "array": (lambda: np.ones(3), item(0, 2.0)),
    "array of another shape": (lambda: np.arange(4.0), lambda held: setattr(held, "shape", (2, 2))),
    "array of another type": (
        lambda: np.ones(2, np.int32),
        lambda held: setattr(held, "dtype", np.uint32),
    ),
    "array of objects": (lambda: np.array([1.0, None], object), item(0, 2.0)),
    "array of objects, deeper": (
        lambda: np.array([[1.0], None], object),
        lambda held: held[0].append(1.0),
    ),
    "array of times": (lambda: np.array(["2001-01-01"], "M8[D]"), item(0, "2002-01-01")),
    "strided array": (lambda: np.ones((3, 4))[:, ::2], item((0, 1), 2.0)),
    "masked array": (
        lambda: np.ma.masked_array([1.0, 2.0], [False, False]),
        lambda held: held.mask.__setitem__(0, True),
    ),
    "list": (lambda: [1.0], item(0, 2.0)),
    "list in a list": (lambda: [[1.0]], lambda held: held[0].append(1.0)),
    "long list": (lambda: [1.0] * 1001, item(500, 2.0)),
    "long list of lists": (lambda: [[1.0]] * 1001, lambda held: held[0].append(1.0)),
    "dictionary": (lambda: {"a": 1.0}, item("a", 2.0)),
    "key of a dictionary": (
        lambda: {"a": 1.0},
        lambda held: held.update({"b": held.pop("a")}),
    ),
    "dictionary of one's own": (Settings, set_gain),
    "named tuple of one's own": (lambda: Record(1.0), set_gain),
    "deque": (lambda: collections.deque([1.0]), lambda held: held.append(2.0)),
    "array of Python": (lambda: array.array("f", [1.0]), lambda held: held.append(2.0)),
    "set": (lambda: {1}, lambda held: held.add(2)),
    "bytearray": (lambda: bytearray(b"a"), lambda held: held.extend(b"b")),
    "object": (lambda: types.SimpleNamespace(gain=1.0), set_gain),
    "object's new attribute": (types.SimpleNamespace, set_gain),
    "slots": (Slotted, set_gain),
    "slot without a value": (Slotted, lambda held: setattr(held, "other", 1.0)),
    "single slot": (OneSlot, set_gain),
    "slots of a base class": (Inherited, set_gain),
    "class of an object": (
        Calling,
        lambda held: setattr(held, "__class__", type("Calling", (Calling,), {})),
    ),
    "default": (fresh_function, lambda held: held.__defaults__[0].append(1.0)),
    "defaults": (fresh_function, lambda held: setattr(held, "__defaults__", (2.0,))),
    "keyword's default": (
        fresh_function,
        lambda held: setattr(held, "__kwdefaults__", {"factor": 2.0}),
    ),
    "code": (
        lambda: closing_over(1.0),
        lambda held: setattr(held, "__code__", (lambda value: lambda x: value + x)(0).__code__),
    ),
    "closure": (lambda: closing_over([1.0]), lambda held: held.__closure__[0].cell_contents.pop()),
    "variable of a closure": (
        lambda: closing_over(1.0),
        lambda held: setattr(held.__closure__[0], "cell_contents", 2.0),
    ),
    "function's attribute": (lambda: closing_over(1.0), set_gain),
    "object of a method": (lambda: Calling().method, lambda held: set_gain(held.__self__)),
    "object of a partial": (
        lambda: functools.partial(with_defaults, [1.0]),
        lambda held: held.args[0].append(1.0),
    ),
    "keyword of a partial": (
        lambda: functools.partial(with_defaults, factor=[1.0]),
        lambda held: held.keywords["factor"].append(1.0),
    ),
    "function of a partial": (
        lambda: functools.partial(closing_over([1.0])),
        lambda held: held.func.__closure__[0].cell_contents.append(1.0),
    ),
    "layer that Keras does not know of": (
        lambda: closing_over(layers.LeakyReLU(0.1)),
        lambda held: setattr(held.__closure__[0].cell_contents, "negative_slope", 2.0),
    ),
    "its precision": (
        lambda: types.SimpleNamespace(layer=layers.ReLU()),
        lambda held: setattr(held.layer, "dtype_policy", "bfloat16"),
    ),
    "its variables": (
        lambda: types.SimpleNamespace(layer=layers.Dense(2)),
        lambda held: held.layer.build((1, 4)),
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_changes_in_place_is_seen(name):
    make, change = IN_PLACE[name]
    model = model_with(Holder())
    held = make()
    # past Keras, which would keep a copy of containers
    object.__setattr__(model.layers[0], "held", held)
    assert model.layers[0].held is held
    assert seen(model, lambda _: change(held))


# two values of an attribute between which there is a difference
REPLACED = {
    "number": (1.0, 2.0),
    "sign of zero": (0.0, -0.0),
    "infinity": (1.0, np.inf),
    "truth": (1, True),
    "kind of number": (1, 1.0),
    "text": ("same", "valid"),
    "bytes": (b"a", b"b"),
    "none": (None, 0),
    "complex": (1j, 2j),
    "slice": (slice(1), slice(2)),
    "range": (range(1), range(2)),
    "fraction": (fractions.Fraction(1, 2), fractions.Fraction(1, 3)),
    "decimal": (decimal.Decimal("0.1"), decimal.Decimal("0.2")),
    "scalar": (np.float32(1), np.float32(2)),
    "scalar's type": (np.float32(0), np.int32(0)),
    "list or tuple": ([1.0], (1.0,)),
    "length": ((1.0,), (1.0, 1.0)),
    "order": ((1, 2), (2, 1)),
    "dictionary or list": ({"a": 1}, ["a", 1]),
    "array or list": (np.ones(1), [1.0]),
    "class": (int, float),
    "module": (np, keras),
    "function": (closing_over(1.0), closing_over(1.0)),
    "method": (Calling().method, Calling().other),
    "function of a partial": (functools.partial(max), functools.partial(min)),
    "object": (Calling(), Calling()),
    "activation of Keras": (keras.activations.relu, keras.activations.tanh),
    "tensor": (keras.ops.ones(1), keras.ops.ones(1)),
    "variable": (keras.Variable(1.0), keras.Variable(1.0)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_another_value_is_another_state(name):
    first, second = REPLACED[name]
    model = model_with(Holder())
    object.__setattr__(model.layers[0], "held", first)
    assert seen(model, lambda _: object.__setattr__(model.layers[0], "held", second))


@pytest.mark.parametrize(
    "value", [np.nan, complex(np.nan), np.float32(np.nan), np.array([np.nan]), [np.nan], {}, ()]
)
def test_equal_values_are_the_same_state(value):
    model = model_with(Holder())
    object.__setattr__(model.layers[0], "held", value)
    before = ModelState(model)
    copied = type(value)(value) if not isinstance(value, np.ndarray) else value.copy()
    object.__setattr__(model.layers[0], "held", copied)
    assert before == ModelState(model)


def at(index, name, value):
    return lambda model: setattr(model.layers[index], name, value)


def replace_last_layer(model):
    """By one of the same name and settings."""
    model.pop()
    model.add(layers.ReLU(name="last"))


def of_a_map():
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    model = model_with(layers.Dense(4, dtype=policies))
    return model, lambda _: policies.__setitem__(model.layers[0].path, "bfloat16")


OF_LAYERS = {
    "policy": (lambda: model_with(layers.ReLU()), at(0, "dtype_policy", "mixed_bfloat16")),
    "policy's variables": (lambda: model_with(layers.ReLU()), at(0, "dtype_policy", "bfloat16")),
    "trainable": (lambda: model_with(Holder()), at(0, "trainable", False)),
    "autocast": (lambda: model_with(Holder()), at(0, "autocast", False)),
    "masking": (lambda: model_with(Holder()), at(0, "supports_masking", True)),
    "user's private": (lambda: model_with(Holder()), at(0, "_gain", 2.0)),
    "new attribute": (lambda: model_with(Holder()), at(0, "gain", 2.0)),
    "deleted attribute": (lambda: model_with(Holder()), lambda m: delattr(m.layers[0], "held")),
    "epsilon": (lambda: model_with(layers.BatchNormalization()), at(0, "epsilon", 1.0)),
    "max_value": (lambda: model_with(layers.ReLU(6.0)), at(0, "max_value", 1.0)),
    "alpha": (lambda: model_with(layers.ELU()), at(0, "alpha", 2.0)),
    "scale": (
        lambda: model_with(layers.Rescaling(np.ones(4))),
        lambda m: m.layers[0].scale.fill(2),
    ),
    "activation": (model_with, at(0, "activation", keras.activations.tanh)),
    "class": (
        lambda: model_with(Holder()),
        at(0, "__class__", type("Holder", (Holder,), {"call": lambda self, x: 2 * x})),
    ),
    "call": (model_with, at(0, "call", lambda x: x)),
    "layer": (
        lambda: keras.Sequential([keras.Input((4,)), layers.ReLU(name="last")]),
        replace_last_layer,
    ),
    "model's": (model_with, lambda model: setattr(model, "temperature", 2.0)),
    "lora": (model_with, lambda model: model.layers[0].enable_lora(1)),
    "added layer": (model_with, lambda model: model.add(layers.ReLU())),
}


@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_layer_that_changes_is_seen(name):
    build, change = OF_LAYERS[name]
    assert seen(build(), change)


def test_a_policy_of_a_map_is_seen():
    assert seen(*of_a_map())


def test_a_variable_in_place_of_an_equal_one_is_seen():
    class Scale(layers.Layer):
        def build(self, _):
            self.gain = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            return x * self.gain

    model = model_with(Scale())
    before = ModelState(model)
    before.layers = None
    after = ModelState(model)
    after.layers = None
    assert before == after
    after.variables[0] = _Identity(keras.Variable(1.0))
    assert before != after
    assert before != "a state"


@pytest.mark.parametrize("kind", ["factor", "mask", "number", "operation"])
def test_constants_of_a_graph_are_seen(kind):
    """A factor's array that was changed in place left the compiled functions as they were."""
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    constant = np.array([[True, True, True, False]]) if kind == "mask" else np.ones(4, "float32")
    inputs = keras.Input((4,))
    hidden = layers.Dense(4)(inputs)
    if kind == "factor":
        hidden = hidden * constant
    elif kind == "mask":
        hidden = layers.Softmax()(hidden, mask=constant)
    elif kind == "number":
        hidden = keras.ops.clip(hidden, -1.0, 1.0)
    else:
        hidden = keras.ops.roll(hidden, 1, axis=1)
    model = keras.Sequential([keras.Input((4,)), keras.Model(inputs, hidden), layers.Dense(3)])
    before = predict_logits(model, x)
    if kind == "factor":
        constant[:] = 3.0
    elif kind == "mask":
        constant[:] = [[True, False, True, True]]
    elif kind == "number":
        producer(hidden).operation.x_max = 0.1
    else:
        producer(hidden).operation.shift = 2
    after = predict_logits(model, x)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(x), atol=1e-5)


def test_the_epsilon_of_keras_is_seen():
    epsilon = keras.config.epsilon()
    model = model_with(layers.Normalization(mean=0.0, variance=0.0))
    before = ModelState(model)
    keras.config.set_epsilon(0.5)
    try:
        assert before != ModelState(model)
        assert before.after_tracing(ModelState(model)) != ModelState(model)
    finally:
        keras.config.set_epsilon(epsilon)
    assert before == ModelState(model)


def test_what_is_gone_equals_nothing():
    value = Calling()
    identity, again = _Identity(value), _Identity(value)
    assert identity == again
    assert identity != _Identity(Calling())
    assert identity != value
    del value
    gc.collect()
    assert identity != again
    number = (1, 2)  # of a type without weak references
    assert _Identity(number) == _Identity(number)
    assert _Identity(number) != _Identity((1, 2, 3))
    assert _Identity(5) != _Identity(6)


def test_nothing_is_kept_alive():
    held, layer = Calling(), layers.ReLU()
    model = model_with(Holder(types.SimpleNamespace(a=held, b=layer, c=[held.method])))
    state = ModelState(model)
    gone = [weakref.ref(each) for each in (held, layer, model, model.variables[0])]
    del held, layer, model
    for _ in range(2):
        gc.collect()
    assert [reference() for reference in gone] == [None] * 4
    assert state.layers


def test_objects_that_refer_to_each_other_and_many_objects():
    first, second = types.SimpleNamespace(), types.SimpleNamespace(gain=1.0)
    first.other, second.other = second, first
    assert seen(model_with(Holder(first)), lambda _: set_gain(second))
    many = [types.SimpleNamespace(gain=1.0) for _ in range(600)]
    model = model_with(Holder())
    object.__setattr__(model.layers[0], "held", many)
    assert seen(model, lambda _: set_gain(many[0]))
    assert not seen(model, lambda _: set_gain(many[-1]))  # beyond 500 by identity
    assert seen(model, lambda _: many.__setitem__(-1, Calling()))


def test_a_variable_that_has_no_value_yet():
    def outer():
        def inner(x):
            return later * x

        if x_is_never:
            later = 1
        return inner

    x_is_never = False
    model = model_with(Holder(outer()))
    assert ModelState(model) == ModelState(model)


def test_bookkeeping_of_keras_is_no_change(tmp_path):
    inner = Holder()
    model = model_with(inner, layers.BatchNormalization(), layers.Dropout(0.5))
    model.layers[1]._note = 1  # private ones of Keras's own layers are bookkeeping
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    before = ModelState(model)
    model.layers[1]._note = 2
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(x, np.zeros((8, 3)), verbose=0)
    model.evaluate(x, np.zeros((8, 3)), verbose=0)
    model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    assert any(name.startswith("_self_update") for name in vars(inner))  # TensorFlow's
    keras.Model(model.inputs, model.outputs)(x)
    layers.Dense(2)(model.layers[0].output)
    assert before == ModelState(model)
    # a layer inside an object refers to bookkeeping as well
    held = model_with(Holder(types.SimpleNamespace(method=inner.call)))
    before = ModelState(held)
    inner(x)
    layers.Dense(2)(inner(keras.Input((4,))))
    assert before == ModelState(held)


# what tracing changes ----------------------------------------------------------------------------


def traced(model, change):
    """The state that is kept when `change` happened while a function was traced."""
    before = ModelState(model)
    change(model)
    return before.after_tracing(ModelState(model)), ModelState(model)


@pytest.mark.parametrize(
    ("build", "change", "is_taken_over"),
    [
        (lambda: model_with(Holder()), at(0, "held", 3), True),
        (lambda: model_with(layers.ReLU(6.0)), at(0, "max_value", 1.0), False),
        (lambda: model_with(layers.ReLU(6.0)), at(0, "noted", 1.0), False),
        (
            lambda: model_with(layers.Activation(Calling())),
            lambda model: set_gain(model.layers[0].activation),
            True,
        ),
        (lambda: model_with(layers.Activation(Calling())), at(0, "activation", Calling()), False),
        (lambda: model_with(layers.Activation(Calling())), at(0, "activation", None), False),
        (lambda: model_with(Holder()), at(0, "__class__", type("Other", (Holder,), {})), False),
        (model_with, lambda model: model.add(layers.ReLU()), False),
    ],
)
def test_only_what_users_code_notes_is_taken_over(build, change, is_taken_over):
    kept, current = traced(build(), change)
    assert (kept == current) is is_taken_over


def test_another_layer_or_constant_is_not_taken_over():
    def replace_by_an_equal_one(model):
        model.pop()
        model.add(Holder(name="last"))

    model = keras.Sequential([keras.Input((4,)), Holder(name="last")])
    kept, current = traced(model, replace_by_an_equal_one)
    assert kept != current
    constant = np.ones(4)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(inputs * constant))
    kept, current = traced(model, lambda _: constant.fill(2.0))
    assert kept != current
