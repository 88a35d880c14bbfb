"""Box-constrained L-BFGS against exact distances, a brute-force box, and Carlini and Wagner's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.attacks import assert_exact
from sklearn.datasets import load_digits

from tfrobust.attacks import minimal


def test_exact_distance_of_linear_models(linear):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal)
    assert_exact(minimal(model, x, "lbfgs"), exact, rtol=0.01)
    finer = minimal(model, x[::6], "lbfgs", steps=14)
    np.testing.assert_allclose(finer.distance, exact[::6], rtol=2e-3)


def nearest_in_the_box(x, normal, margin):
    """The distance from x to {z in [0, 1]^n : normal . (z - x) >= margin}, by its multiplier."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        change = np.clip(x + middle * normal, 0, 1) - x
        low, high = (middle, high) if normal @ change < margin else (low, middle)
    return np.linalg.norm(change) if normal @ change >= margin * (1 - 1e-6) else np.inf


def test_exact_distance_where_the_box_binds(linear, rng):
    model, _, normal, _ = linear
    x = rng.choice([0.0, 0.02, 0.98, 1.0], (12, 36))
    kernel, bias = model.layers[-1].get_weights()
    values = x @ kernel.astype(np.float64) + bias
    lead = values[:, 1] - values[:, 0]
    towards = np.where(lead < 0, 1, -1)[:, None] * normal
    exact = [nearest_in_the_box(*row) for row in zip(x, towards, np.abs(lead), strict=True)]
    free = np.abs(lead) / np.linalg.norm(normal)
    assert np.isfinite(exact).all() and (exact > 1.1 * free).any()
    result = minimal(model, x.reshape(12, 6, 6, 1), "lbfgs", steps=12)
    np.testing.assert_allclose(result.distance, exact, rtol=0.01)
    changed = x.reshape(result.perturbation.shape) + result.perturbation
    assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6


def test_out_of_reach_is_unsuccessful(linear):
    model, x, *_ = linear
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, np.array([1e4, 0], np.float32)])
    result = minimal(model, x[:2], "lbfgs")
    assert not result.success.any() and np.isinf(result.distance).all()


@pytest.fixture(scope="module")
def digits():
    """A small net trained on handwritten digits, and images that it has not seen."""
    keras.utils.set_random_seed(0)
    data = load_digits()
    x = (data.images / 16)[..., None].astype(np.float32)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x[:1500], data.target[:1500], epochs=10, verbose=0)
    assert model.evaluate(x[1500:], data.target[1500:], verbose=0)[1] > 0.85
    return model, x[1500:]


@pytest.mark.slow
def test_not_much_larger_than_carlini_and_wagner(digits):
    model, x = digits
    ours = minimal(model, x[:8], "lbfgs")
    theirs = minimal(model, x[:8], "carlini_wagner", steps=150, stepsize=0.05)
    assert ours.success.all() and theirs.success.all()
    ratio = ours.distance / theirs.distance
    assert np.median(ratio) < 1.02
    assert ratio.max() < 1.35


@pytest.mark.slow  # seven searches
def test_all_targets_are_the_smallest_of_each(cnn, images):
    x = images[:3]
    logits = np.asarray(cnn(x))
    each = [minimal(cnn, x, "lbfgs", targets=k, steps=3).distance for k in range(5)]
    each = np.array(each)
    assert np.isinf(each[logits.argmax(axis=1), np.arange(3)]).all()
    assert np.isfinite(each).sum() == 12
    every = minimal(cnn, x, "lbfgs", targets="all", steps=3).distance
    np.testing.assert_allclose(every, each.min(axis=0), rtol=1e-4)
    several = minimal(cnn, x, "lbfgs", targets=[1, 3], steps=3).distance
    np.testing.assert_allclose(several, each[[1, 3]].min(axis=0), rtol=1e-4)
    second = np.argsort(logits, axis=1)[:, -2]
    one = minimal(cnn, x, "lbfgs", steps=3).distance
    np.testing.assert_allclose(one, each[second, np.arange(3)], rtol=1e-4)


def test_neither_batch_nor_order_matters(digits):
    model, x = digits
    unordered = minimal(model, x[:4], "lbfgs", steps=2)
    order = np.array([3, 0, 2, 1])
    again = minimal(model, x[:4][order], "lbfgs", steps=2, batch_size=3)
    np.testing.assert_allclose(again.distance, unordered.distance[order], rtol=1e-5)


def test_pixels_of_another_range(digits):
    model, x = digits
    plain = minimal(model, x[:2], "lbfgs", steps=4)
    wide = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), model])
    result = minimal(wide, x[:2] * 255, "lbfgs", value_range=(0, 255), steps=4)
    np.testing.assert_allclose(result.distance, 255 * plain.distance, rtol=0.01)


@pytest.mark.slow
def test_the_first_const_makes_little_difference(digits):
    model, x = digits
    plain = minimal(model, x[:2], "lbfgs", steps=6)
    for const in (1e-4, 1e4):
        other = minimal(model, x[:2], "lbfgs", initial_const=const, steps=6)
        np.testing.assert_allclose(other.distance, plain.distance, rtol=0.15)


@keras.saving.register_keras_serializable("tests")
class NanGradient(keras.layers.Layer):
    """The identity, with a gradient that is NaN where the first pixel is over .5."""

    def call(self, inputs):
        @tf.custom_gradient
        def identity(x):
            bad = tf.where(x[:, :1, :1] > 0.5, np.float32(np.nan), 0.0)
            return tf.identity(x), lambda upstream: upstream + bad

        return identity(inputs)


@pytest.mark.parametrize("attack", ["lbfgs", "fast_gradient_value", "hot_cold"])
def test_nan_gradients_are_unsuccessful(linear, attack):
    model, x, *_ = linear
    broken = keras.Sequential([keras.Input((6, 6, 1)), NanGradient(), *model.layers])
    plain = minimal(model, x, attack)
    bad = x[:, 0, 0, 0] > 0.5
    assert bad.any() and not bad.all()
    result = minimal(broken, x, attack)
    assert not result.success[bad].any()
    far = ~bad & (plain.distance < 0.02)  # whose first pixel stays below
    assert far.any()
    assert result.success[far].all()
    if attack == "lbfgs":  # keeps what it found before it came to a pixel over .5
        assert (result.distance[far] >= plain.distance[far] * 0.99).all()
    else:
        np.testing.assert_allclose(result.distance[far], plain.distance[far], rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targets": "none"},
            r'targets must be "runner_up", "all", or classes in 0..4, got \'none',
        ),
        ({"targets": 5}, "classes in 0..4, got 5"),
        ({"targets": [0, -1]}, "classes in 0..4"),
        ({"targets": []}, "classes in 0..4"),
        ({"targets": 1.5}, "classes in 0..4"),
        ({"initial_const": 0}, "initial_const must be positive and finite, got 0"),
        ({"steps": -1}, "steps must be a whole number of at least 0, got -1"),
        ({"max_iterations": 0}, "max_iterations must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings(cnn, images, settings, message):
    with pytest.raises(ValueError, match=message):
        minimal(cnn, images, "lbfgs", **settings)
