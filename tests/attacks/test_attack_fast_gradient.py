"""The fast gradient sign and value attacks against their closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.attacks import assert_exact

from tfrobust.attacks import minimal


def test_linear_closed_form(linear):
    model, x, normal, margin = linear
    exact = margin / np.abs(normal).sum()
    result = minimal(model, x, "fast_gradient_sign", norm=np.inf)
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(result.distance, exact, rtol=1e-3, atol=1e-6)
    towards = np.where(result.labels == 0, 1, -1)[:, None] * np.sign(normal)
    np.testing.assert_array_equal(np.sign(result.perturbation).reshape(16, 36), towards)


def test_scales_with_the_value_range(linear):
    model, x, normal, margin = linear
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / 255, bias])
    result = minimal(
        model, x * 255, "fast_gradient_sign", value_range=(0, 255), norm=np.inf, steps=30
    )
    np.testing.assert_allclose(result.distance, 255 * margin / np.abs(normal).sum(), rtol=1e-3)


def test_beyond_max_epsilon_is_unsuccessful(linear):
    model, x, normal, margin = linear
    exact = margin / np.abs(normal).sum()
    limit = float(np.median(exact))
    result = minimal(model, x, "fast_gradient_sign", max_epsilon=limit)
    np.testing.assert_array_equal(result.success, exact < limit)


def test_steps_are_bisections(linear):
    model, x, *_ = linear
    result = minimal(model, x, "fast_gradient_sign", max_epsilon=0.25, steps=3, norm=np.inf)
    grid = result.distance / (0.25 / 2**3)
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
    assert len(np.unique(np.round(grid))) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epsilon": 0}, "max_epsilon must be positive and finite, got 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 0, got 1.5"),
    ],
)
def test_bad_settings(linear, settings, message):
    with pytest.raises(ValueError, match=message):
        minimal(linear[0], linear[1], "fast_gradient_sign", **settings)


def test_value_finds_the_exact_distance_of_linear_models(linear):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal)
    result = minimal(model, x, "fast_gradient_value")
    assert_exact(result, exact, rtol=1e-3, atol=1e-5)
    towards = np.where(result.labels == 0, 1, -1)[:, None] * normal / np.linalg.norm(normal)
    perturbation = result.perturbation.reshape(16, 36)
    np.testing.assert_allclose(perturbation, towards * result.distance[:, None], atol=1e-6)


def test_value_goes_along_the_loss_gradient(cnn, images):
    result = minimal(cnn, images, "fast_gradient_value")
    assert result.success.mean() > 0.8
    z = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(result.labels, cnn(z))
    gradient = tape.gradient(loss, z).numpy()
    changed = images + result.perturbation
    for row in np.flatnonzero(result.success):
        inside = (changed[row] > 0) & (changed[row] < 1)
        scale = gradient[row][inside] @ result.perturbation[row][inside]
        scale /= gradient[row][inside] @ gradient[row][inside]
        expected = np.clip(images[row] + scale * gradient[row], 0, 1)
        np.testing.assert_allclose(changed[row], expected, atol=1e-5)


def test_value_reaches_as_far_as_max_epsilon(linear):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal)
    limit = float(np.median(exact))
    result = minimal(model, x, "fast_gradient_value", max_epsilon=limit)
    np.testing.assert_array_equal(result.success, exact < limit)


@pytest.mark.parametrize("attack", ["fast_gradient_sign", "fast_gradient_value", "hot_cold"])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-30.0, 70.0)])
def test_reaches_a_change_of_100_in_255_of_every_pixel(linear, attack, value_range):
    model = linear[0]
    low, high = value_range
    x = np.full((2, 6, 6, 1), (low + high) / 2, np.float32)
    for reach, reached in ((0.999, True), (1.001, False)):
        # the mean pixel has to grow by this part of 100/255 of the range
        goal = x.mean() + reach * 100 / 255 * (high - low)
        kernel = np.full((36, 1), 1 / 36) * [-0.5, 0.5]
        model.layers[-1].set_weights([kernel, np.array([0.5, -0.5]) * goal])
        result = minimal(model, x, attack, value_range=value_range)
        assert (result.success == reached).all()


@pytest.mark.parametrize("attack", ["fast_gradient_value", "hot_cold"])
def test_saturated_and_tiny_gradients(cnn, images, attack):
    plain = minimal(cnn, images[:8], attack)
    for scale in (1e4, 0.1):
        scaled = keras.Sequential([cnn, keras.layers.Rescaling(scale)])
        result = minimal(scaled, images[:8], attack)
        if attack == "hot_cold":  # its direction does not depend on the scale
            np.testing.assert_allclose(result.distance, plain.distance, rtol=1e-2)
        np.testing.assert_array_equal(result.success, plain.success)
        assert result.success.any()
