"""SmoothGrad and VarGrad against explicit gradients at the noise drawn, and on linear models."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.derivatives import images, network

from tfrobust.classifier import predict_logits
from tfrobust.saliency import gradient, smoothed, smoothgrad, vargrad

layers = keras.layers
SAMPLES = 7


@pytest.fixture(scope="module")
def smooth():
    keras.utils.set_random_seed(1)
    return network("tanh", "average"), images(5)


@pytest.fixture(scope="module")
def linear():
    """A linear model, and its weights (classes, *input)."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3, 5, 1)), layers.Flatten(), layers.Dense(4)])
    return model, model.get_weights()[0].T.reshape(4, 3, 5, 1)


def noise(x, seed, sample, first_row=0):
    """Standard normal numbers of consecutive rows, as the maps draw them."""
    key, row = smoothed._key(seed), tf.constant(first_row, tf.int64)
    return smoothed.normal_noise(key, row, tf.constant(sample), tf.constant(x)).numpy()


def at_noisy_inputs(model, x, classes, *, sigma, seed, clip=(-np.inf, np.inf), of="logit"):
    """Gradients one by one, (samples, batch, *input) float64."""
    inputs = [np.clip(x + sigma * noise(x, seed, k), *clip) for k in range(SAMPLES)]
    return np.stack([gradient(model, z, classes, of=of) for z in inputs]).astype(np.float64)


@pytest.mark.parametrize("of", ["logit", "loss", "log_odds"])
@pytest.mark.parametrize("clip", [None, (-0.5, 0.7)])
@pytest.mark.parametrize("include_clean", [False, True])
def test_smoothgrad_is_the_mean_of_the_gradients_at_noisy_inputs(smooth, of, clip, include_clean):
    model, x = smooth
    settings = {"sigma": 0.6, "seed": 3, "of": of}
    # for the predicted classes of the clean images, which the noise changes
    predicted = predict_logits(model, x).argmax(axis=1)
    others = [predict_logits(model, x + 0.6 * noise(x, 3, k)).argmax(axis=1) for k in range(7)]
    assert (np.array(others) != predicted).any()
    maps = at_noisy_inputs(model, x, predicted, clip=clip or (-np.inf, np.inf), **settings)
    if include_clean:
        maps = np.concatenate([gradient(model, x, predicted, of=of)[None], maps])
    found = smoothgrad(
        model, x, samples=SAMPLES, clip=clip, include_clean=include_clean, **settings
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, maps.mean(axis=0), rtol=1e-4, atol=1e-6)
    # the signed mean differs from the clean map and from the mean of absolute values
    assert np.abs(found - gradient(model, x, predicted, of=of)).max() > 1e-2
    assert np.abs(np.abs(found) - np.abs(maps).mean(axis=0)).max() > 1e-3


@pytest.mark.parametrize("clip", [None, (-0.5, 0.7)])
def test_vargrad_is_the_population_variance(smooth, clip):
    model, x = smooth
    classes = np.array([3, 1, 0, 2, 2])
    settings = {"sigma": 0.6, "seed": 3}
    maps = at_noisy_inputs(model, x, classes, clip=clip or (-np.inf, np.inf), **settings)
    found = vargrad(model, x, classes, samples=SAMPLES, clip=clip, **settings)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert found.max() > 1e-4
    np.testing.assert_allclose(found, maps.var(axis=0), rtol=1e-3, atol=1e-9)
    assert maps.var(axis=0, ddof=1).max() > 1.1 * found.max()


def test_the_variance_of_large_gradients_does_not_cancel():
    """Gradients of about 1000 that vary by about 1: their squares have errors of about .1."""
    inputs = keras.Input((6,))
    steep, curved = layers.Dense(1, use_bias=False), layers.Dense(8, activation="tanh")
    output = layers.Add()([steep(inputs), layers.Dense(1)(curved(inputs))])
    model = keras.Model(inputs, layers.Concatenate()([output, -output]))
    steep.kernel.assign(np.full((6, 1), 1000.0))
    x, classes = images(5, (6,)), np.zeros(5, int)
    maps = at_noisy_inputs(model, x, classes, sigma=0.5, seed=0)
    found = vargrad(model, x, classes, sigma=0.5, samples=SAMPLES)
    assert maps.var(axis=0).max() < 1
    np.testing.assert_allclose(found, maps.var(axis=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("include_clean", [False, True])
def test_maps_of_a_linear_model_are_its_weights_for_any_noise(linear, include_clean):
    model, weights = linear
    x, classes = images(6, (3, 5, 1)), np.array([0, 3, 1, 1, 2, 0])
    settings = {"sigma": 5.0, "samples": 50, "clip": (-1, 1), "seed": 11}
    found = smoothgrad(model, x, classes, include_clean=include_clean, **settings)
    np.testing.assert_array_equal(found, weights[classes])
    assert not vargrad(model, x, classes, **settings).any()


def test_without_noise_the_map_is_the_gradient(smooth):
    model, x = smooth
    found = smoothgrad(model, x, sigma=0, samples=3, include_clean=True)
    np.testing.assert_allclose(found, gradient(model, x), rtol=1e-5, atol=1e-7)
    assert vargrad(model, x, sigma=0, samples=3).max() < 1e-12


@pytest.mark.parametrize("shape", [(6, 5, 2), (3, 5, 1), (1,)])
def test_the_noise_of_a_row_depends_on_its_place_only(shape):
    x = np.zeros((9, *shape), np.float32)
    whole = noise(x, 5, 2)
    for first, last in ((0, 4), (4, 5), (5, 9)):
        np.testing.assert_array_equal(noise(x[first:last], 5, 2, first), whole[first:last])
    assert whole.shape == x.shape
    everything = np.stack([noise(x, seed, k) for seed in (5, 6) for k in range(3)])
    assert len(np.unique(everything)) == everything.size


def test_the_noise_is_standard_normal():
    values = noise(np.zeros((400, 8, 7, 3), np.float32), 1, 0).astype(np.float64)
    count = values.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean() - moment) < 5 * np.sqrt(variance / count)
    flat = values.reshape(400, -1)
    for shifted in (flat[:, 1:] * flat[:, :-1], flat[1:] * flat[:-1]):
        assert abs(shifted.mean()) < 5 / np.sqrt(shifted.size)


@pytest.mark.parametrize("method", [smoothgrad, vargrad])
def test_maps_do_not_depend_on_the_batch_size(smooth, method):
    model, x = smooth
    settings = {"sigma": 0.6, "samples": 4, "seed": 2}
    whole = method(model, x, **settings)
    close = {"rtol": 1e-3, "atol": 1e-6}
    for batch_size in (1, 2, 3):
        found = method(model, x, batch_size=batch_size, **settings)
        np.testing.assert_allclose(found, whole, **close)
    np.testing.assert_allclose(method(model, x[:3], **settings), whole[:3], **close)
    np.testing.assert_array_equal(method(model, x, **settings), whole)
    other = method(model, x, **settings | {"seed": 3})
    assert np.abs(other - whole).max() > 0.1 * np.abs(whole).max()
    # equal images at different places get different noise
    same = method(model, np.repeat(x[:1], 2, axis=0), **settings)
    assert np.abs(same[0] - same[1]).max() > 0.1 * np.abs(same).max()


def test_rows_of_a_data_set_get_the_noise_of_their_place(smooth):
    model, x = smooth
    classes = np.array([3, 1, 0, 2, 2])
    smoothing = smoothed.Smoothing(sigma=0.6, samples=4)
    whole = smoothgrad(model, x, classes, sigma=0.6, samples=4, seed=8)
    part = smoothed.smoothed_maps(
        model, x[2:], classes[2:], smoothing, seed=8, batch_size=2, first_row=2
    )
    np.testing.assert_allclose(part, whole[2:], rtol=1e-3, atol=1e-6)


class CountsTraces(layers.Layer):
    traces = 0

    def call(self, inputs):
        CountsTraces.traces += 1
        return inputs


def test_later_calls_do_not_trace_again():
    model = keras.Sequential(
        [keras.Input((3, 2, 2)), CountsTraces(), layers.Flatten(), layers.Dense(3)]
    )

    def call(count, **settings):
        for method in (smoothgrad, vargrad):
            method(model, images(count, (3, 2, 2)), **settings)

    call(3, samples=2)
    before = CountsTraces.traces
    call(5, samples=4, sigma=0.3, clip=(0, 1), seed=2**70, batch_size=2)
    assert CountsTraces.traces == before


@pytest.mark.parametrize("method", [smoothgrad, vargrad])
def test_bad_input_is_refused(linear, method):
    model, x = linear[0], images(2, (3, 5, 1))
    wrong = {
        "sigma must be at least 0 and finite": [{"sigma": -0.1}, {"sigma": np.nan}],
        "samples must be a whole number of at least 1": [{"samples": 0}, {"samples": 2.5}],
        r"clip must be \(minimum, maximum\) or None": [
            *({"clip": clip} for clip in [(1, 0), (0, np.nan), (0, 0), 1, "ab", (0, (1, 2))])
        ],
        "seed must be a whole number of at least 0": [{"seed": -1}, {"seed": None}],
        "batch_size must be at least 1": [{"batch_size": 0}],
        'of must be "logit", "loss" or "log_odds"': [{"of": "margin"}],
        r"classes must lie in 0\.\.3": [{"classes": [0, 4]}],
        "not one-hot rows": [{"classes": np.eye(2, 4)}],
    }
    for message, cases in wrong.items():
        for case in cases:
            with pytest.raises(ValueError, match=message):
                method(model, x, **case)
    with pytest.raises(ValueError, match="NaN or infinite"):
        method(model, np.full_like(x, np.nan))
    with pytest.raises(ValueError, match="the model takes"):
        method(model, x[..., :0])
