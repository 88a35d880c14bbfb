"""Certified bounds against rounding errors in single precision, at x and in the ball."""

import keras
import numpy as np
import pytest
from helpers.nets import double_precision, randomise

from tfrobust.bounds import robustness

layers = keras.layers


def rounding_net():
    inputs = keras.Input((12, 12, 2))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.MaxPooling2D(2)(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_rounding_is_bounded_by_the_proof():
    """The same weights in double precision: logits differ by less than what is taken off."""
    for seed in range(3):
        single = rounding_net()
        with double_precision():
            double = rounding_net()
        randomise(single, seed)
        double.set_weights([np.asarray(w, np.float64) for w in single.get_weights()])
        x = np.random.default_rng(seed).normal(size=(64, 12, 12, 2)).astype(np.float32)
        exact = np.asarray(double(x.astype(np.float64), training=False))
        computed = np.asarray(single(x, training=False), np.float64)
        result = robustness(single, x, tighten=False)
        # each of the two logits of a margin, here and where an attacker's image is computed
        assert (4 * np.abs(exact - computed).max(1) <= result.rounding).all()
        assert result.proved_in_float32.mean() > 0.5
        allowed = 0.5 * result.margin
        assert (result.rounding <= allowed)[result.proved_in_float32].all()


def test_a_constant_network_cannot_be_changed():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="relu"), layers.Dense(2)]
    )
    randomise(model, 0)
    model.layers[-1].kernel.assign(np.zeros((4, 2)))
    model.layers[-1].bias.assign([1.0, 0.0])
    result = robustness(model, np.ones((2, 3), np.float32))
    assert (result.bound > 1e29).all() and (result.bound < 1e31).all()
    model.layers[-1].bias.assign([0.0, 0.0])
    assert (robustness(model, np.ones((2, 3), np.float32)).bound == 0).all()


def test_rounding_where_the_attackers_image_is():
    """At x = 0 nothing is lost to rounding, but what an attacker adds is rounded."""
    rng = np.random.default_rng(0)
    common = 300 * rng.normal(size=(100, 1))
    model = keras.Sequential([keras.Input((100,)), layers.Dense(2)])
    kernel = (common + rng.normal(size=(100, 2)) / 20).astype(np.float32)
    model.set_weights([kernel, np.float32([1, 0])])
    x = np.zeros((1, 100), np.float32)
    result = robustness(model, x)
    across = np.diff(kernel.astype(np.float64), axis=1)[:, 0]
    steps = np.linspace(0.8, 1, 20_001) * result.bound[0]
    images = (steps[:, None] * across / np.linalg.norm(across)).astype(np.float32)
    inside = np.linalg.norm(images.astype(np.float64), axis=1) < result.bound[0]
    classes = np.asarray(model(images)).argmax(1)
    assert inside.sum() > 19_000 and (classes[inside] == 0).all()
    # what is taken off covers what the two logits lose there
    exact = images.astype(np.float64) @ kernel.astype(np.float64) + [1, 0]
    lost = np.abs(np.asarray(model(images), np.float64) - exact).sum(1)
    assert result.proved_in_float32.all() and (lost[inside] <= result.rounding).all()


def test_margins_that_never_change_are_lost_to_rounding():
    """Two classes of one weight vector: far away both logits are the same number."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2)])
    model.set_weights([np.float32([[1, 1]]), np.float32([0, 0.001])])
    result = robustness(model, np.zeros((1, 1), np.float32))
    assert 100 < result.bound[0] < 1e5
    logits = np.asarray(model(np.float32([[1e5], [result.bound[0]]])))
    assert logits[0, 0] == logits[0, 1] and logits[1, 1] > logits[1, 0]


def test_linear_layers_that_cancel():
    """The product is known in double precision; single precision sees nothing of it."""
    first = np.float32([[1 + 2**-12, 1, 1]])
    second = np.float32([[1 + 2**-12, 0], [-(1 + 2**-11), 0], [0, 0]])
    slope = (first.astype(np.float64) @ second.astype(np.float64))[0, 0]
    assert slope == pytest.approx(5.96e-8, rel=1e-2)
    for order in ([0, 1, 2], [1, 0, 2]):
        model = keras.Sequential([keras.Input((1,)), layers.Dense(3), layers.Dense(2)])
        bias = np.float32([-0.01, 0])
        model.set_weights([first[:, order], np.zeros(3, np.float32), second[order], bias])
        bound = robustness(model, np.float32([[0.01]])).bound[0]
        assert 0 < bound < 0.01 / slope
