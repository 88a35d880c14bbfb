"""Distances do not depend on the unit of pixels: all registered attacks on three ranges."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.attacks import minimal
from tfrobust.attacks.foolbox import ALIASES
from tfrobust.attacks.foolbox.unit_range import UnitRange
from tfrobust.attacks.registry import BUILT_IN

RANGES = [(0.0, 255.0), (-123.68, 151.06)]
# quick settings, in numbers without a unit
SETTINGS = {
    "carlini_wagner": {
        "steps": 40,
        "binary_search_steps": 3,
        "stepsize": 0.05,
        "initial_const": 1.0,
    },
    "lbfgs": {"steps": 4},
}


@pytest.fixture(scope="module")
def trained():
    """A small network that has learned to tell three kinds of noisy stripes."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    stripes = np.stack([np.indices((8, 8))[0] % 2, np.indices((8, 8))[1] % 2, np.zeros((8, 8))])
    x = np.clip(0.25 + 0.5 * stripes[labels] + rng.normal(0, 0.15, (300, 8, 8)), 0, 1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x[..., None].astype("float32"), labels, epochs=6, verbose=0)
    return model, x[:5, ..., None].astype(np.float32)


def in_units(model, value_range):
    """The same classifier for pixels of another range."""
    low, high = value_range
    rescaling = keras.layers.Rescaling(1 / (high - low), offset=-low / (high - low))
    return keras.Sequential([keras.Input((8, 8, 1)), rescaling, model])


@pytest.mark.parametrize("attack", [*BUILT_IN, *ALIASES, "LinfPGD", "L2FMNAttack"])
def test_distances_are_the_same(trained, attack):
    model, x = trained
    options = {"norm": np.inf} if attack == "LinfPGD" else {}
    options |= SETTINGS.get(attack, {})
    if attack == "LinfPGD":
        options |= {"random_start": False, "steps": 10}
    expected = minimal(model, x, attack, **options)
    assert expected.success.mean() > 0.8
    for low, high in RANGES:
        pixels = (low + (high - low) * x).astype(np.float32)
        found = minimal(
            in_units(model, (low, high)), pixels, attack, value_range=(low, high), **options
        )
        np.testing.assert_array_equal(found.success, expected.success)
        relative = found.distance[found.success] / (high - low) / expected.distance[found.success]
        # searches that branch on rounding may end elsewhere for single examples
        assert np.median(np.abs(relative - 1)) < 1e-3
        assert (np.abs(relative - 1) < 1e-3).mean() >= 0.8


def test_carlini_wagner_on_a_linear_model_of_255():
    """Foolbox itself finds nothing here: no success is worth its squared distance in pixels."""
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    kernel = (rng.normal(size=(36, 2)) / 255).astype(np.float32)
    model.layers[-1].set_weights([kernel, np.zeros(2, np.float32)])
    x = rng.uniform(100, 155, (12, 6, 6, 1)).astype(np.float32)
    options = {"steps": 100, "binary_search_steps": 3}
    result = minimal(model, x, "carlini_wagner", value_range=(0, 255), **options)
    assert result.success.all()
    normal = kernel[:, 1] - kernel[:, 0]
    exact = np.abs(x.reshape(12, 36) @ normal) / np.linalg.norm(normal)
    assert (result.distance >= exact * (1 - 1e-4)).all()
    assert np.median(result.distance / np.maximum(exact, 1e-3)) < 1.3


def test_unchanged_pixels_stay_as_they_are():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    x = np.random.default_rng(0).uniform(-3, 7, (5, 4, 4, 1)).astype(np.float32)
    mapped = UnitRange(model, x, (-3.0, 7.0))
    unit = mapped.unit(tf.constant(x)).numpy()
    assert unit.min() >= 0 and unit.max() <= 1
    changed = unit.copy()
    changed[:, 0, 0] = 0.5
    back = mapped.pixels(changed, tf.constant(x)).numpy()
    np.testing.assert_array_equal(back[:, 1:], x[:, 1:])
    np.testing.assert_allclose(back[:, 0, 0], 2.0, rtol=1e-6)


def test_gradients_of_the_mapped_classifier():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    x = np.random.default_rng(0).uniform(0, 255, (5, 4, 4, 1)).astype(np.float32)
    mapped = UnitRange(model, x, (0.0, 255.0))
    unit = mapped.unit(tf.constant(x))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(unit)
        values = mapped.logits(unit)
        picked = tf.reduce_sum(values[:, 1])
    np.testing.assert_allclose(values, model(x), rtol=1e-4, atol=1e-3)
    kernel = model.layers[-1].kernel.numpy()
    expected = np.tile(255 * kernel[:, 1].reshape(1, 4, 4, 1), (5, 1, 1, 1))
    np.testing.assert_allclose(tape.gradient(picked, unit), expected, rtol=1e-5)
    assert tape.gradient(picked, model.layers[-1].kernel) is None


def test_the_smallest_iterate_is_kept(trained):
    model, x = trained
    smallest = minimal(model, x, "basic_iterative")
    last = minimal(model, x, "basic_iterative", keep="last")
    assert smallest.success.all() and last.success.all()
    assert (smallest.distance <= last.distance * (1 + 1e-5)).all()
    coarse = {"rel_stepsize": 0.9, "steps": 12, "bisection_steps": 3}
    kept = minimal(model, x, "basic_iterative", **coarse)
    assert (
        kept.distance < minimal(model, x, "basic_iterative", keep="last", **coarse).distance
    ).any()
    with pytest.raises(ValueError, match='keep must be "last" or "smallest"'):
        minimal(model, x, "basic_iterative", keep="first")
    with pytest.raises(TypeError, match="has no setting keep"):
        minimal(model, x, "deepfool", keep="last")
