"""Batch statistics that can be differentiated twice."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.layers import exact_batch_statistics


def second_derivative(model, x, direction, exact):
    """Derivative along `direction` of the squared input gradient of a function of model(x)."""
    weights = tf.constant(np.random.default_rng(5).normal(size=(len(x), 3)))

    def squared_gradient(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(weights * tf.sin(model(values, training=True)))
        return tf.reduce_sum(tape.gradient(total, values) ** 2)

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = squared_gradient(x)
        return float(tf.reduce_sum(tape.gradient(value, x) * direction))

    step = 1e-6
    numeric = (squared_gradient(x + step * direction) - squared_gradient(x - step * direction)) / (
        2 * step
    )
    if exact:
        with exact_batch_statistics(model):
            return differentiate(), float(numeric)
    return differentiate(), float(numeric)


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
            with exact_batch_statistics(net):
                out = net(x, training=True)
        else:
            out = net(x, training=True)
        results.append([np.asarray(out), *net.get_weights()])
    for plain, exact in zip(*results, strict=True):
        np.testing.assert_allclose(plain, exact, rtol=1e-5, atol=1e-6)


def test_layers_are_left_as_they_were(model, rng):
    before = model.layers[2]._moments
    with pytest.raises(RuntimeError), exact_batch_statistics(model):
        raise RuntimeError
    assert model.layers[2]._moments == before
