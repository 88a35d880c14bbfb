"""What Keras keeps private still does what we take it to do, and users' layers stay untouched."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.derivatives import second_derivative

from tfrobust.classifier import (
    all_layers,
    exact_batch_statistics,
    producer,
    replaced_method,
    takes_training,
    with_attributes,
)

layers = keras.layers


@pytest.fixture
def model():
    # a curved layer first: right behind the input the two formulas agree
    inputs = keras.Input((3,), dtype="float64")
    x = keras.layers.Dense(3, activation="softplus", dtype="float64")(inputs)
    return keras.Model(inputs, keras.layers.BatchNormalization(dtype="float64")(x))


def test_second_derivative_is_right_inside_and_wrong_outside(model, rng):
    x, direction = (tf.constant(rng.normal(size=(4, 3))) for _ in range(2))
    found, expected = second_derivative(model, x, direction, exact=True)
    assert found == pytest.approx(expected, rel=1e-5)
    # if this fails TensorFlow has been mended, and the block can go
    found, expected = second_derivative(model, x, direction, exact=False)
    assert found != pytest.approx(expected, rel=5e-4)


def test_values_and_moving_statistics_are_keras_own(rng):
    x = rng.normal(size=(16, 5, 5, 3)).astype("float32")
    results = []
    for exact in (False, True):
        inputs = keras.Input((5, 5, 3))
        net = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
        if exact:
            with exact_batch_statistics():
                out = net(x, training=True)
        else:
            out = net(x, training=True)
        results.append([np.asarray(out), *net.get_weights()])
    for plain, exact in zip(*results, strict=True):
        np.testing.assert_allclose(plain, exact, rtol=1e-5, atol=1e-6)


def test_neither_layers_nor_keras_are_left_changed(model):
    cls = layers.BatchNormalization
    before, settings = vars(cls)["_moments"], dict(vars(model.layers[2]))
    with pytest.raises(RuntimeError), exact_batch_statistics():
        assert vars(cls)["_moments"] is not before
        assert vars(model.layers[2]) == settings
        raise RuntimeError
    assert vars(cls)["_moments"] is before


def test_a_replaced_method_is_replaced_in_its_thread_alone():
    class Greeter:
        def greet(self, name):
            return f"hello {name}"

    original = vars(Greeter)["greet"]
    inside, checked = threading.Event(), threading.Event()
    results = {}

    def louder(function, self, name):
        return function(self, name).upper()

    def other_thread():
        inside.wait(10)
        results["outside"] = Greeter().greet("b")
        with replaced_method(Greeter, "greet", lambda function, self, name: "other"):
            results["other"] = Greeter().greet("c")
            checked.set()
            done.wait(10)
            results["after the first left"] = Greeter().greet("d")

    done = threading.Event()
    thread = threading.Thread(target=other_thread)
    thread.start()
    with replaced_method(Greeter, "greet", louder):
        inside.set()
        checked.wait(10)
        assert Greeter().greet("a") == "HELLO a".upper()
        with replaced_method(Greeter, "greet", lambda function, self, name: "inner"):
            assert Greeter().greet("a") == "inner"
        assert Greeter().greet("a") == "HELLO A"
    done.set()
    thread.join(10)
    assert results == {"outside": "hello b", "other": "other", "after the first left": "other"}
    assert vars(Greeter)["greet"] is original


def test_a_layer_seen_without_its_activation_shares_everything_else(rng):
    class Doubled(layers.Dense):
        def call(self, inputs, training=None):
            self.calls = getattr(self, "calls", 0) + 1
            return 2 * super().call(inputs, training=training)

    layer = Doubled(3, activation="relu")
    x = rng.normal(size=(5, 4)).astype("float32")
    outputs = layer(x)
    alias = with_attributes(layer, activation=None)
    assert isinstance(alias, Doubled)
    np.testing.assert_allclose(alias.call(x), 2 * (x @ layer.kernel + layer.bias), rtol=1e-5)
    assert layer.calls == alias.calls == 2
    assert layer.activation is keras.activations.relu
    np.testing.assert_array_equal(layer(x), outputs)


def test_the_graph_of_a_functional_model_can_be_followed():
    inputs = keras.Input((4,))
    dropout = layers.Dropout(0.5)
    hidden = dropout(layers.Dense(3)(inputs), training=True)
    model = keras.Model(inputs, hidden)
    operation, tensors, arguments, index = producer(model.outputs[0])
    assert operation is dropout
    assert arguments.kwargs["training"] is True
    assert index == 0
    assert producer(tensors[0]).inputs[0] is model.inputs[0]
    assert takes_training(dropout)
    assert not takes_training(layers.ReLU())
    outer = keras.Sequential([model, layers.ReLU()])
    assert all_layers(outer)[0] is outer
    assert {dropout, model, *outer.layers, *model.layers} <= set(all_layers(outer))
