"""Attribution maps against closed forms on linear models, finite differences, and completeness."""

import functools

import keras
import numpy as np
import pytest
from helpers.derivatives import (
    CLASSES,
    SHAPE,
    away_from_kinks,
    finite_differences,
    images,
    network,
    numpy_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.classifier import predict_logits
from tfrobust.saliency import gradient, gradient_times_input, integrated_gradients, random_map

layers = keras.layers
KINDS = ("logit", "loss", "log_odds")


def log_sum_exp(z):
    return z.max() + np.log(np.exp(z - z.max()).sum())


def explained(of, z, y):
    """The explained function of float64 logits (classes,)."""
    if of == "logit":
        return z[y]
    return log_sum_exp(z if of == "loss" else np.delete(z, y)) - z[y]


@pytest.fixture(scope="module")
def smooth():
    """A network, the same in NumPy float64, images and classes."""
    keras.utils.set_random_seed(1)
    model = network("tanh", "average")
    return model, numpy_network(model, "tanh", "average"), images(3), np.array([2, 0, 3])


@pytest.fixture(scope="module")
def linear():
    """A linear model, and its weights (*input, classes) and bias in float64."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3, 2, 2)), layers.Flatten(), layers.Dense(4, bias_initializer="normal")]
    )
    kernel, bias = (w.astype(np.float64) for w in model.get_weights())
    return model, kernel.reshape(3, 2, 2, 4), bias


@pytest.mark.parametrize("of", KINDS)
def test_gradients_are_those_of_finite_differences(smooth, of):
    model, forward, x, classes = smooth
    expected = np.stack(
        [
            finite_differences(lambda z, y=y: explained(of, forward(z)[0], y)[None], row)[0]
            for row, y in zip(x.astype(np.float64), classes, strict=True)
        ]
    )
    assert np.abs(expected).max() > 0.01
    close = {"atol": 2e-5, "rtol": 1e-3}
    np.testing.assert_allclose(gradient(model, x, classes, of=of), expected, **close)
    found = gradient_times_input(model, x, classes, of=of)
    np.testing.assert_allclose(found, x * expected, **close)


def test_maps_of_a_linear_model(linear):
    model, kernel, _ = linear
    x, classes = images(5, (3, 2, 2)), np.array([0, 3, 1, 1, 2])
    rows = np.moveaxis(kernel, -1, 0)[classes]
    np.testing.assert_allclose(gradient(model, x, classes), rows, rtol=1e-5)
    np.testing.assert_allclose(gradient_times_input(model, x, classes), x * rows, rtol=1e-5)
    baselines = {
        "number": 0.3,
        "colour": np.array([0.1, -0.2]),
        "image": images(1, (3, 2, 2), seed=7)[0],
        "per example": images(5, (3, 2, 2), seed=8),
    }
    for baseline in baselines.values():
        found = integrated_gradients(model, x, classes, baseline=baseline, steps=1)
        np.testing.assert_allclose(found, (x - baseline) * rows, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_of_a_homogeneous_network_are_exact():
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3, use_bias=False, activation="relu"),
            layers.Flatten(),
            layers.Dense(CLASSES, use_bias=False),
        ]
    )
    x, classes = images(4), np.array([0, 1, 2, 3])
    found = integrated_gradients(model, x, classes, steps=1)
    times_input = gradient_times_input(model, x, classes)
    np.testing.assert_allclose(found, times_input, rtol=1e-4, atol=1e-6)
    logits = predict_logits(model, x)[np.arange(4), classes]
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", KINDS)
def test_integrated_gradients_are_complete(smooth, of):
    """They sum to the difference of the explained function, with the midpoint rule's error."""
    model, forward, x, classes = smooth
    baseline = images(1, seed=5)[0]
    at_baseline = forward(baseline.astype(np.float64))[0]
    difference = [
        explained(of, forward(row)[0], y) - explained(of, at_baseline, y)
        for row, y in zip(x.astype(np.float64), classes, strict=True)
    ]
    errors = []
    for steps in (10, 40, 300):
        maps = integrated_gradients(model, x, classes, baseline=baseline, steps=steps, of=of)
        errors.append(np.abs(maps.sum(axis=(1, 2, 3), dtype=np.float64) - difference))
    assert np.abs(difference).max() > 0.1
    assert errors[2].max() < 2e-4
    # the error falls with the square of the number of steps: by 16
    assert (errors[1] < errors[0] / 8 + 2e-5).all()


def test_integrated_gradients_are_means_of_gradients_along_the_line(smooth):
    model, _, x, classes = smooth
    baseline, steps = images(3, seed=9), 7
    midpoints = (np.arange(steps) + 0.5) / steps
    along = [gradient(model, baseline + t * (x - baseline), classes, of="loss") for t in midpoints]
    found = integrated_gradients(model, x, classes, baseline=baseline, steps=steps, of="loss")
    expected = (x - baseline) * np.mean(along, axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@functools.cache
def random_linear():
    model = keras.Sequential([keras.Input((3, 2, 2)), layers.Flatten(), layers.Dense(4)])
    model.layers[-1].kernel.assign(np.random.default_rng(0).normal(size=(12, 4)))
    return model


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(0.1, 3))
def test_the_log_odds_have_the_direction_of_the_loss(seed, scale):
    """Gradient of the loss = (1 - p) * gradient of the log-odds."""
    model = random_linear()
    rng = np.random.default_rng(seed)
    x = rng.normal(0, scale, (6, 3, 2, 2)).astype(np.float32)
    classes = rng.integers(0, 4, 6)
    z = predict_logits(model, x).astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p = p[np.arange(6), classes] / p.sum(axis=1)
    loss = gradient(model, x, classes, of="loss")
    log_odds = gradient(model, x, classes, of="log_odds")
    expected = (1 - p)[:, None, None, None] * log_odds
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-6)


def test_only_the_log_odds_survive_saturation(linear):
    _, kernel, bias = linear
    model = keras.Sequential([keras.Input((3, 2, 2)), layers.Flatten(), layers.Dense(4)])
    model.set_weights([1e3 * kernel.reshape(12, 4), bias])
    x = images(20, (3, 2, 2))
    z = predict_logits(model, x).astype(np.float64)
    top = np.sort(z, axis=1)
    x, z = x[top[:, -1] - top[:, -2] > 200], z[top[:, -1] - top[:, -2] > 200]
    assert len(x) > 5
    assert not gradient(model, x, of="loss").any()
    found = gradient(model, x, of="log_odds")
    y = z.argmax(axis=1)
    others = np.stack([np.delete(row, k) for row, k in zip(z, y, strict=True)])
    q = np.exp(others - others.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    columns = 1e3 * np.moveaxis(kernel, -1, 0)
    for k in range(len(x)):
        expected = np.tensordot(q[k], np.delete(columns, y[k], axis=0), 1) - columns[y[k]]
        np.testing.assert_allclose(found[k], expected, rtol=1e-2, atol=1)


@pytest.mark.parametrize("method", [gradient, gradient_times_input, integrated_gradients])
def test_maps_depend_neither_on_the_batch_size_nor_on_other_examples(method):
    model = network("relu", "max")
    x = away_from_kinks(numpy_network(model, "relu", "max"), 5).astype(np.float32)
    whole = method(model, x, of="log_odds")
    assert whole.dtype == np.float32
    assert whole.shape == x.shape
    np.testing.assert_allclose(method(model, x, of="log_odds", batch_size=2), whole, rtol=1e-4)
    predicted = predict_logits(model, x).argmax(axis=1)
    np.testing.assert_array_equal(method(model, x, predicted, of="log_odds"), whole)


class CountsTraces(layers.Layer):
    traces = 0

    def call(self, inputs):
        CountsTraces.traces += 1
        return inputs


@pytest.mark.parametrize("of", KINDS)
def test_later_calls_do_not_trace_again(of):
    model = keras.Sequential(
        [keras.Input((3, 2, 2)), CountsTraces(), layers.Flatten(), layers.Dense(3)]
    )

    def call(count, steps):
        x = images(count, (3, 2, 2))
        gradient(model, x, of=of)
        gradient_times_input(model, x, of=of, batch_size=2)
        integrated_gradients(model, x, of=of, steps=steps, baseline=0.1 * steps)

    call(3, 4)
    before = CountsTraces.traces
    call(5, 9)
    assert CountsTraces.traces == before


def test_a_random_map_is_uniform_and_seeded():
    x = np.zeros((40, 8, 8, 3))
    one, again, other = random_map(x, seed=1), random_map(x, seed=1), random_map(x, seed=2)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, again)
    for values in (one, other, one - other):
        assert values.shape == x.shape
        assert len(np.unique(values)) > 0.99 * values.size
    assert (one >= 0).all()
    assert (one < 1).all()
    counts = np.histogram(one, 10, (0, 1))[0]
    assert np.abs(counts - 768).max() < 6 * np.sqrt(768)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


def test_bad_input_is_refused(linear):
    model, x = linear[0], images(2, (3, 2, 2))
    for method in (gradient_times_input, integrated_gradients):
        with pytest.raises(ValueError, match=r"classes must lie in 0\.\.3"):
            method(model, x, [0, 4])
        with pytest.raises(ValueError, match="not one-hot rows"):
            method(model, x, np.eye(2, 4))
        with pytest.raises(ValueError, match='of must be "logit", "loss" or "log_odds"'):
            method(model, x, of="margin")
        with pytest.raises(ValueError, match="NaN or infinite"):
            method(model, np.full_like(x, np.nan))
        with pytest.raises(ValueError, match="the model takes"):
            method(model, x[..., :1])
    for baseline in (np.zeros((3, 3, 2)), np.zeros((1, 3, 2, 2)), np.zeros((5, 3, 2, 2))):
        with pytest.raises(ValueError, match="baseline must be a number, one example"):
            integrated_gradients(model, x, baseline=baseline)
    with pytest.raises(ValueError, match="baseline holds NaN"):
        integrated_gradients(model, x, baseline=np.inf)
    with pytest.raises(ValueError, match="baseline must be numbers"):
        integrated_gradients(model, x, baseline="black")
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        integrated_gradients(model, x, steps=0)
    with pytest.raises(ValueError, match="x must be a batch"):
        random_map(np.zeros(3), seed=0)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        random_map(x, seed=-1)
