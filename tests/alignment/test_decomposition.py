"""Theorem 1: the homogeneous decomposition is exact inside its class, and checked outside."""

import keras
import numpy as np
import pytest
from helpers.nets import (
    double_precision,
    next_piecewise_linear_net,
    piecewise_linear_net,
    randomise,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.alignment import decompose, measure
from tfrobust.classifier.derivatives import jacobian, predict_logits

layers = keras.layers


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_theorem_1_is_exact_to_rounding(seed):
    model, x = next_piecewise_linear_net(seed)
    parts = decompose(model, x)
    assert parts.relative_error.max() < 1e-4
    np.testing.assert_allclose(parts.logits, predict_logits(model, x), rtol=1e-4, atol=1e-4)


def test_homogeneous_part_is_the_jacobian_along_x():
    model, x = piecewise_linear_net(7)
    expected = np.einsum("bchwk,bhwk->bc", jacobian(model, x), x)
    np.testing.assert_allclose(decompose(model, x).homogeneous, expected, rtol=1e-3, atol=1e-4)


def test_without_biases_the_bias_part_vanishes():
    model, x = piecewise_linear_net(7, bias=False)
    np.testing.assert_array_equal(decompose(model, x).bias, 0)


def test_bias_part_by_scaling_all_biases():
    """d/dt Psi(x; (1 + t) b) at t = 0 by central differences, in a smooth net with BN."""
    inputs = keras.Input((6, 6, 1), dtype="float64")
    with double_precision():
        x = layers.Conv2D(3, 3, activation="softplus")(inputs)
        x = layers.BatchNormalization()(x)
        outputs = layers.Dense(4)(layers.Flatten()(x))
        model = randomise(keras.Model(inputs, outputs), 1)
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 1)).astype("float32")
    with pytest.warns(UserWarning, match="not exact"):
        explicit = decompose(model, x).bias
    biases = [v for v in model.variables if v.name in ("bias", "beta", "moving_mean")]
    assert len(biases) == 4
    values = [v.numpy() for v in biases]

    def logits_at(factor):
        for variable, value in zip(biases, values, strict=True):
            variable.assign(value * factor)
        return np.asarray(model(x.astype("float64"), training=False))

    step = 1e-5
    expected = (logits_at(1 + step) - logits_at(1 - step)) / (2 * step)
    np.testing.assert_allclose(explicit, expected, rtol=1e-4, atol=1e-5)


def test_preprocessing_offsets_are_biases():
    """Removing the offsets from the model by hand must remove exactly their share."""
    offset = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Rescaling(2.0, offset=-1.5),
            layers.Normalization(mean=[0.1, -0.2, 0.3, 0.4], variance=[1.0, 2.0, 0.5, 1.0]),
            layers.Dense(3, use_bias=False),
        ]
    )
    randomise(offset, 0)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    kernel = offset.layers[-1].kernel.numpy().astype(float)
    mean, std = np.array([0.1, -0.2, 0.3, 0.4]), np.sqrt([1.0, 2.0, 0.5, 1.0])
    expected = np.broadcast_to((-1.5 - mean) / std @ kernel, (6, 3))
    np.testing.assert_allclose(decompose(offset, x).bias, expected, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    model, x = piecewise_linear_net(11)
    before = np.asarray(model(x))
    decompose(model, x)
    np.testing.assert_array_equal(np.asarray(model(x)), before)


def test_outside_the_class_the_error_is_the_residual():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, activation="tanh"), layers.Dense(3)]
    )
    randomise(model, 2)
    x = np.random.default_rng(2).normal(size=(9, 4))
    with pytest.warns(UserWarning, match="median of 9 examples") as caught:
        parts = decompose(model, x)
    assert caught[0].filename == __file__
    residual = parts.logits - parts.homogeneous - parts.bias
    np.testing.assert_array_equal(parts.residual, residual)
    assert f"{parts.relative_error.max():.1%}" in str(caught[0].message)


class Subclassed(keras.Model):
    """Calls its stack, whose weights and offsets only the model itself knows of."""

    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def call(self, inputs):
        return self.stack(inputs)


@pytest.mark.parametrize("head", [None, "softmax"])
def test_biases_of_a_subclassed_model_are_those_of_its_layers(head):
    stack = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Rescaling(2.0, offset=-1.5),
            layers.Conv2D(3, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(4, activation=head),
        ]
    )
    randomise(stack, 3)
    x = np.random.default_rng(3).normal(size=(7, 6, 6, 1)).astype("float32")
    model = Subclassed(stack)
    model(x)
    ours, expected = decompose(model, x), decompose(stack, x)
    assert np.abs(expected.bias).max() > 1
    np.testing.assert_allclose(ours.bias, expected.bias, rtol=1e-5, atol=1e-5)
    assert ours.relative_error.max() < 1e-5
    assert measure(model, x).decomposition_error.max() < 1e-5
