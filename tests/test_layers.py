"""Layers against NumPy, TensorFlow's own and finite differences, second derivatives among them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.derivatives import second_derivative
from helpers.nets import double_precision, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.alignment import decompose
from tfrobust.layers import (
    FrozenBatchNormalization,
    LocalResponseNormalization,
    LpPooling2D,
)
from tfrobust.objectives import CrossEntropy, DoubleBackprop


def frozen_net():
    layers = keras.layers
    with double_precision():
        inputs = keras.Input((3,), dtype="float64")
        x = layers.Dense(3, activation="softplus")(inputs)
        x = FrozenBatchNormalization(momentum=0.9)(x)
        return randomise(keras.Model(inputs, layers.Dense(3)(x)), 3)


def test_frozen_statistics_are_used_and_kept_in_training(rng):
    model = frozen_net()
    x = rng.normal(5, 3, size=(8, 3))
    layer = model.layers[2]
    gamma, beta, mean, variance = (np.array(w) for w in layer.weights)
    values = np.asarray(model.layers[1](x))
    expected = gamma * (values - mean) / np.sqrt(variance + layer.epsilon) + beta
    for training in (True, False, None):
        np.testing.assert_allclose(layer(values, training=training), expected, rtol=1e-12)
    model(x, training=True)
    np.testing.assert_array_equal(layer.moving_mean, mean)
    np.testing.assert_array_equal(layer.moving_variance, variance)


def test_gamma_and_beta_of_frozen_statistics_are_trained(rng):
    model = frozen_net()
    layer = model.layers[2]
    assert [w.name for w in layer.trainable_weights] == ["gamma", "beta"]
    x = tf.constant(rng.normal(size=(8, 3)))

    def loss():
        return tf.reduce_sum(tf.sin(model(x, training=True)))

    for variable in layer.trainable_weights:
        with tf.GradientTape() as tape:
            value = loss()
        gradient = np.asarray(tape.gradient(value, variable.value))
        start, direction = variable.numpy(), rng.normal(size=3)
        steps = []
        for step in (1e-6, -1e-6):
            variable.assign(start + step * direction)
            steps.append(float(loss()))
        variable.assign(start)
        assert gradient @ direction == pytest.approx((steps[0] - steps[1]) / 2e-6, rel=1e-5)


def test_frozen_statistics_have_a_second_derivative(rng):
    x, direction = (tf.constant(rng.normal(size=(4, 3))) for _ in range(2))
    for exact in (False, True):
        found, expected = second_derivative(frozen_net(), x, direction, exact=exact)
        assert abs(found) > 1e-3
        assert found == pytest.approx(expected, rel=1e-5)


def test_frozen_statistics_are_saved_and_loaded_in_safe_mode(tmp_path, rng):
    model = frozen_net()
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", compile=False, safe_mode=True)
    assert type(again.layers[2]) is FrozenBatchNormalization
    assert again.layers[2].momentum == 0.9
    x = rng.normal(5, 3, size=(8, 3))
    np.testing.assert_array_equal(again(x, training=True), model(x, training=True))


def test_biases_of_frozen_statistics_are_found(rng):
    """Theorem 1's explicit bias part holds beta and the moving mean."""
    inputs = keras.Input((4,))
    x = FrozenBatchNormalization()(keras.layers.Dense(5)(inputs))
    outputs = keras.layers.Dense(3)(keras.layers.ReLU()(x))
    model = randomise(keras.Model(inputs, outputs), 4)
    parts = decompose(model, rng.normal(size=(6, 4)).astype("float32"))
    assert parts.relative_error.max() < 1e-4
    assert np.abs(parts.bias).max() > 0.1


def derivatives(function, x, directions):
    """Of <w, sin f(x)> in float64: orders 1, 2, .. along the directions, each with its numeric."""
    x = tf.constant(x, tf.float64)
    weights = tf.constant(np.random.default_rng(5).normal(size=function(x).shape))

    def value(at):
        return tf.reduce_sum(weights * tf.sin(function(at)))

    def along(inner, direction):
        def run(at):
            with tf.GradientTape() as tape:
                tape.watch(at)
                result = inner(at)
            return tf.reduce_sum(tape.gradient(result, at) * direction)

        return run

    results, step = [], 1e-5
    for direction in directions:
        derivative = along(value, tf.constant(direction))
        numeric = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
        results.append((float(derivative(x)), float(numeric)))
        value = derivative
    return results


def saved_and_loaded(model, folder):
    model.save(folder / "m.keras")
    return keras.saving.load_model(folder / "m.keras", compile=False, safe_mode=True)


def slow_response_normalization(x, radius, bias, alpha, beta):
    x = x.astype(np.float64)
    result = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(0, c - radius) : c + radius + 1]
        result[..., c] = x[..., c] / (bias + alpha * (near**2).sum(axis=-1)) ** beta
    return result


@given(
    seed=st.integers(0, 2**16),
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    radius=st.integers(0, 8),
    bias=st.sampled_from([2.0, 1.0, 0.01]),
    alpha=st.sampled_from([1e-4, 0.3, 0.0]),
    beta=st.sampled_from([0.75, 0.5, 1.0, 0.3, 0.0]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_response_normalization_equals_its_formula(seed, shape, radius, bias, alpha, beta, scale):
    x = np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
    found = LocalResponseNormalization(radius, bias, alpha, beta)(x)
    exact = slow_response_normalization(x, radius, bias, alpha, beta)
    np.testing.assert_allclose(found, exact, rtol=3e-6)
    if len(shape) == 4:
        theirs = tf.nn.local_response_normalization(x, radius, bias, alpha, beta)
        np.testing.assert_allclose(found, theirs, rtol=3e-6)


def test_response_normalization_has_the_thesis_constants(rng):
    layer = LocalResponseNormalization()
    assert (layer.depth_radius, layer.bias, layer.alpha, layer.beta) == (2, 2.0, 1e-4, 0.75)
    x = rng.uniform(-1, 1, (3, 6, 6, 20)).astype(np.float32)
    theirs = tf.nn.local_response_normalization(x, 2, 2.0, 1e-4, 0.75)
    np.testing.assert_allclose(layer(x), theirs, atol=1e-6)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_response_normalization_has_three_derivatives(rng, beta):
    layer = LocalResponseNormalization(1, 1.0, 0.7, beta, dtype="float64")
    x = rng.normal(size=(2, 3, 3, 5))
    found = derivatives(layer, x, rng.normal(size=(3, *x.shape)))
    for analytic, numeric in found:
        assert abs(numeric) > 0.01
        assert analytic == pytest.approx(numeric, rel=1e-5)


def test_tensorflow_has_no_second_derivative_of_it(rng):
    # if this fails TensorFlow has been mended
    x = rng.normal(size=(2, 3, 3, 5)).astype(np.float32)
    with pytest.raises(LookupError, match="LRNGrad"):
        derivatives(
            lambda at: tf.cast(
                tf.nn.local_response_normalization(tf.cast(at, "float32")), "float64"
            ),
            x,
            rng.normal(size=(2, *x.shape)),
        )


def test_double_backpropagation_through_the_new_layers(rng):
    layers = keras.layers
    with double_precision():
        inputs = keras.Input((9, 9, 2), dtype="float64")
        x = layers.Conv2D(4, 3)(inputs)
        x = LocalResponseNormalization(alpha=0.5)(x)
        x = LpPooling2D(3, 2, p=3.0)(x)
        x = layers.Conv2D(3, 2, activation="softplus")(x)
        x = LpPooling2D(2)(x)
        model = randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), 3)
    tensors = {
        "images": tf.constant(rng.normal(size=(4, 9, 9, 2))),
        "labels": tf.constant([0, 1, 2, 1]),
    }
    objective = CrossEntropy() + DoubleBackprop(2.0)

    def loss():
        return tf.add_n(
            list(objective.parts(objective.forward(model, tensors, training=True)).values())
        )

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        start, direction = variable.numpy(), rng.normal(size=variable.shape)
        ends = []
        for step in (1e-5, -1e-5):
            variable.assign(start + step * direction)
            ends.append(float(loss()))
        variable.assign(start)
        analytic = float(np.sum(gradient * direction))
        assert analytic == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth_radius": -1}, "depth_radius must be a whole number of at least 0, got -1"),
        ({"depth_radius": 1.5}, "depth_radius must be a whole number of at least 0, got 1.5"),
        ({"bias": 0}, "bias must be positive and finite, got 0"),
        ({"alpha": -1}, "alpha must be at least 0 and finite, got -1"),
        ({"beta": np.nan}, "beta must be at least 0 and finite, got nan"),
    ],
)
def test_bad_settings_of_response_normalization(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalResponseNormalization(**settings)


def test_response_normalization_wants_known_channels():
    with pytest.raises(ValueError, match="known number of channels"):
        LocalResponseNormalization()(keras.Input((4, None)))


def slow_pooling(x, pool, strides, padding, p):
    x = np.abs(x.astype(np.float64))
    starts = []
    for axis in (0, 1):
        size = x.shape[axis + 1]
        if padding == "same":
            count = -(-size // strides[axis])
            more = max((count - 1) * strides[axis] + pool[axis] - size, 0)
            ends = [(0, 0)] * 4
            ends[axis + 1] = (more // 2, more - more // 2)
            x = np.pad(x, ends)
        else:
            count = (size - pool[axis]) // strides[axis] + 1
        starts.append([k * strides[axis] for k in range(count)])
    rows = []
    for top in starts[0]:
        windows = [x[:, top : top + pool[0], left : left + pool[1]] for left in starts[1]]
        flat = np.stack(windows, axis=1).reshape(len(x), len(windows), -1, x.shape[-1])
        largest = np.maximum(flat.max(axis=2, keepdims=True), 1e-300)  # p = 40 underflows
        rows.append(np.linalg.norm(flat / largest, ord=p, axis=2) * largest[:, :, 0])
    return np.stack(rows, axis=1)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    pool=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["valid", "same"]),
    p=st.sampled_from([1, 1.5, 2, 3, 40]),
    scale=st.sampled_from([1e-5, 1.0, 1e4]),
    known=st.booleans(),
)
def test_pooling_equals_its_formula(seed, size, pool, strides, padding, p, scale, known):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, scale, (2, *size, 3)) * 10.0 ** rng.integers(-6, 1, (2, *size, 1))
    x = np.where(rng.random(x.shape) < 0.3, 0, x).astype(np.float32)
    layer = LpPooling2D(pool, strides, padding, p)
    inputs = keras.Input((*size, 3) if known else (None, None, 3))
    found = np.asarray(keras.Model(inputs, layer(inputs))(x))
    exact = slow_pooling(x, pool, strides or pool, padding, p)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert layer.compute_output_shape(x.shape) == found.shape


def test_pooling_between_the_average_and_the_maximum(rng):
    x = np.abs(rng.normal(size=(2, 7, 7, 3))).astype(np.float32)
    average, largest = (f(x, 3, 2, "VALID").numpy() for f in (tf.nn.avg_pool2d, tf.nn.max_pool2d))
    np.testing.assert_allclose(LpPooling2D(3, 2, p=1)(x), 9 * average, rtol=1e-5)
    np.testing.assert_allclose(LpPooling2D(3, 2, p=300)(x), largest, rtol=1e-2)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
@pytest.mark.parametrize("layout", [(2, 2, "valid"), (3, 2, "same"), (2, 3, "same")])
def test_pooling_has_second_derivatives(rng, p, layout):
    layer = LpPooling2D(*layout, p, dtype="float64")
    x = rng.uniform(0.5, 2, (2, 5, 6, 2)) * rng.choice([-1, 1], (2, 5, 6, 2))
    for analytic, numeric in derivatives(layer, x, rng.normal(size=(2, *x.shape))):
        assert abs(numeric) > 1e-3
        assert analytic == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_second_derivatives_beside_zeros(rng, p):
    """Zero pixels in windows that are not all zero, as after a ReLU."""
    layer = LpPooling2D(2, p=p, dtype="float64")
    x = rng.normal(size=(3, 6, 6, 2))
    x[:, ::2, ::2] = 0
    found = derivatives(layer, x, rng.normal(size=(2, *x.shape)))
    for (analytic, numeric), rel in zip(found, (1e-5, 1e-3), strict=True):
        assert analytic == pytest.approx(numeric, rel=rel)
    assert abs(found[1][0]) > 0.1


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("strides", [1, 2])
def test_no_derivative_at_a_window_of_zeros_is_nan(rng, p, strides):
    layer = LpPooling2D(2, strides, p=p)
    x = rng.normal(size=(1, 6, 6, 1)).astype(np.float32)
    x[0, :4, :4] = 0
    x = tf.constant(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(layer(x) ** 2 + layer(x))
        gradient = tape.gradient(total, x)
        squared = tf.reduce_sum(gradient**2)
    second = outer.gradient(squared, x)
    assert np.isfinite(gradient).all() and np.isfinite(second).all()
    assert not gradient[0, :3, :3].numpy().any()
    assert gradient[0, 4:].numpy().all()


def test_pooling_does_not_hide_nan(rng):
    x = rng.normal(size=(1, 4, 4, 1)).astype(np.float32)
    x[0, 0, 0], x[0, 3, 3, 0] = np.nan, 1e30
    for p in (1, 2, 3):
        y = np.asarray(LpPooling2D(2, p=p)(x))
        assert np.isnan(y[0, 0, 0]).all()
        assert y[0, 1, 1] == pytest.approx(1e30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 0}, "pool_size must be a whole number of at least 1, got 0"),
        ({"pool_size": (2, 2, 2)}, "pool_size must be one whole number or two"),
        ({"strides": (1, -1)}, "strides must be a whole number of at least 1, got -1"),
        ({"padding": "SAME"}, 'padding must be "valid" or "same", got \'SAME\''),
        ({"p": 0.5}, "p must be at least 1 and finite, got 0.5"),
        ({"p": np.inf}, "p must be at least 1 and finite, got inf; use MaxPooling2D"),
    ],
)
def test_bad_settings_of_pooling(settings, message):
    with pytest.raises(ValueError, match=message):
        LpPooling2D(**settings)


def test_windows_larger_than_the_images():
    with pytest.raises(ValueError, match=r"windows of \(4, 4\), larger than the images"):
        LpPooling2D(4)(keras.Input((3, 8, 1)))


def test_new_layers_are_saved_and_loaded_in_safe_mode(tmp_path, rng):
    inputs = keras.Input((8, 8, 6))
    x = LocalResponseNormalization(3, 1.5, 0.2, 0.6)(inputs)
    model = keras.Model(inputs, LpPooling2D((3, 2), 2, "same", 3)(x))
    again = saved_and_loaded(model, tmp_path)
    normalisation, pooling = again.layers[1:]
    assert type(normalisation) is LocalResponseNormalization
    assert normalisation.get_config() == model.layers[1].get_config()
    assert (normalisation.depth_radius, normalisation.alpha) == (3, 0.2)
    assert type(pooling) is LpPooling2D
    assert (pooling.pool_size, pooling.strides) == ((3, 2), (2, 2))
    assert (pooling.padding, pooling.p) == ("same", 3.0)
    assert again.output_shape == (None, 4, 4, 6)
    x = rng.normal(size=(3, 8, 8, 6)).astype(np.float32)
    np.testing.assert_array_equal(again(x), model(x))


def test_half_precision_squares_do_not_overflow(rng):
    x = rng.normal(0, 3000, (2, 4, 4, 5)).astype(np.float32)
    for layer in (LocalResponseNormalization, LpPooling2D):
        half = layer(dtype="float16")(x)
        assert half.dtype == "float16"
        np.testing.assert_allclose(half, layer()(x), rtol=3e-3)
