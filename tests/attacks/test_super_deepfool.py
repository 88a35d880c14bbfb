"""SuperDeepFool against closed forms, brute force, and other attacks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.attacks import assert_exact
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize

from tfrobust.attacks import minimal
from tfrobust.attacks.linearised import nearest_in_box


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), p=st.sampled_from([2.0, np.inf]))
def test_the_nearest_point_of_a_plane_in_a_box(seed, p):
    """Against SciPy's constrained optimisation."""
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=(1, 6))
    low, high = -rng.random((1, 6)), rng.random((1, 6))
    reach = np.where(gradient > 0, gradient * high, gradient * low).sum()
    gain = reach * rng.uniform(0.05, 0.95)
    arrays = [tf.constant(v, tf.float32) for v in (gradient, [gain], low, high)]
    found = nearest_in_box(arrays[0], arrays[1], (arrays[2], arrays[3]), p).numpy()[0]
    assert (found >= low[0] - 1e-6).all() and (found <= high[0] + 1e-6).all()
    assert gradient[0] @ found >= gain * (1 - 1e-4)
    if p == 2:
        best = minimize(
            lambda d: d @ d,
            np.where(gradient[0] > 0, high[0], low[0]),
            jac=lambda d: 2 * d,
            bounds=list(zip(low[0], high[0], strict=True)),
            constraints=LinearConstraint(gradient, gain, np.inf),
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert np.linalg.norm(found) <= np.linalg.norm(best.x) * (1 + 1e-3)
    else:  # min t with |d_i| <= t
        eye = np.eye(6)
        sides = np.vstack(
            [np.c_[eye, -np.ones(6)], np.c_[-eye, -np.ones(6)], np.r_[-gradient[0], 0]]
        )
        limits = np.r_[np.zeros(12), -gain]
        ranges = [*zip(low[0], high[0], strict=True), (0, None)]
        best = linprog(np.r_[np.zeros(6), 1], sides, limits, bounds=ranges)
        assert np.abs(found).max() <= best.fun * (1 + 1e-3) + 1e-6


def test_where_nothing_is_wanted_or_nothing_suffices():
    gradient = tf.constant([[1.0, -2.0], [1.0, -2.0], [0.0, 0.0]])
    room = (-tf.ones_like(gradient), tf.ones_like(gradient))
    found = nearest_in_box(gradient, tf.constant([-1.0, 9.0, 1.0]), room, 2.0).numpy()
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1], [1, -1])
    np.testing.assert_array_equal(found[2], 0)


@pytest.mark.parametrize("p", [2, np.inf])
def test_linear_models_exactly(linear, p):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal, 2 if p == 2 else 1)
    assert_exact(minimal(model, x, "super_deepfool", norm=p), exact, rtol=2e-3, atol=1e-5)


def test_linear_models_where_the_box_binds(linear):
    model, x, *_ = linear
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, 1.0, 0.5], size=x.shape).astype(np.float32)
    kernel, bias = (w.astype(np.float64) for w in model.layers[-1].get_weights())
    result = minimal(model, x, "super_deepfool")
    assert result.success.all()
    weights, offset = kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
    for row, distance in zip(x.reshape(16, 36).astype(np.float64), result.distance, strict=True):
        value = weights @ row + offset
        toward, amount = -np.sign(value) * weights, abs(value)
        best = minimize(
            lambda d: d @ d,
            np.where(toward > 0, 1 - row, -row),
            jac=lambda d: 2 * d,
            bounds=list(zip(-row, 1 - row, strict=True)),
            constraints=LinearConstraint(toward[None], amount, np.inf),
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert distance == pytest.approx(np.linalg.norm(best.x), rel=5e-3)


def curved():
    """Two inputs, three classes with curved boundaries."""
    keras.utils.set_random_seed(3)
    layers = [keras.Input((2,)), keras.layers.Dense(12, activation="tanh"), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 1.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("p", [2, np.inf])
def test_brute_force_in_two_dimensions(p):
    model = curved()
    x = np.random.default_rng(0).uniform(-1, 1, (12, 2)).astype(np.float32)
    result = minimal(model, x, "super_deepfool", value_range=(-3, 3), norm=p)
    axis = np.linspace(-3, 3, 1201, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    classes = np.asarray(model.predict(grid, batch_size=65536, verbose=0)).argmax(axis=1)
    for row, label, distance in zip(x, result.labels, result.distance, strict=True):
        change = grid[classes != label] - row
        nearest = np.linalg.norm(change, ord=p, axis=1).min()
        assert distance >= nearest - 0.005
        assert distance <= nearest * 1.1 + 0.01
    near = [
        np.linalg.norm(grid[classes != label] - row, ord=p, axis=1).min()
        for row, label in zip(x, result.labels, strict=True)
    ]
    assert np.median(result.distance / np.array(near)) < 1.02


@pytest.fixture(scope="module")
def found():
    """A network, images and what the attack finds: its graph takes longest."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images = np.clip(rng.normal(0.5, 0.4, (24, 8, 8, 1)), 0, 1).astype(np.float32)
    cnn = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer="he_normal"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    return cnn, images, minimal(cnn, images, "super_deepfool")


def test_not_larger_than_other_attacks(found):
    cnn, images, ours = found
    assert ours.success.all()
    for name, options in (
        ("deepfool", {}),
        ("fast_gradient_value", {"max_epsilon": 20.0}),
        ("DDNAttack", {"steps": 100}),
    ):
        other = minimal(cnn, images, name, **options)
        assert np.median(ours.distance) <= np.median(other.distance) * 1.001


def test_passes_are_counted(found):
    cnn, images, _ = found
    result = minimal(cnn, images, "super_deepfool", rounds=1, refinements=7)
    jacobians = result.forward_passes - 7 - 12
    assert (jacobians >= 2).all() and (jacobians <= 50).all()
    np.testing.assert_array_equal(result.backward_passes, 5 * jacobians + 7)  # five classes
    assert np.isnan(minimal(cnn, images[:2], "deepfool").forward_passes).all()


def test_neither_batch_nor_order_matters(found):
    cnn, images, whole = found
    parts = minimal(cnn, images[::-1], "super_deepfool", batch_size=5)
    np.testing.assert_allclose(whole.distance, parts.distance[::-1], rtol=2e-2)
    assert (np.abs(whole.distance / parts.distance[::-1] - 1) < 1e-3).mean() > 0.8


def test_flat_and_constant_networks_end():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.set_weights([np.zeros((3, 4)), np.arange(4.0)])
    result = minimal(model, np.full((2, 3), 0.5, np.float32), "super_deepfool")
    assert not result.success.any()


@pytest.mark.parametrize("name", ["steps", "rounds", "candidates", "refinements"])
def test_bad_settings(linear, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        minimal(linear[0], linear[1], "super_deepfool", **{name: -1})
