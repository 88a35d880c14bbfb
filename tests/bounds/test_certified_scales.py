"""Certified bounds where single precision under- or overflows: they shrink, but never lie."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise

from tfrobust import norms
from tfrobust.bounds import robustness
from tfrobust.bounds.operations import upper_norm
from tfrobust.bounds.operations.support_function import support_function_bound

layers = keras.layers


def small_net(first=1.0, head=1.0):
    """A network, and the same with its layers in other units."""
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, activation="relu"), layers.Dense(3)]
    )
    randomise(model, 1)
    factors = np.float32([first, first, head, first * head])
    model.set_weights([w * f for w, f in zip(model.get_weights(), factors, strict=True)])
    return model


def identity_net(*factors, activation=None):
    size = 2
    model = keras.Sequential(
        [keras.Input((size,))]
        + [layers.Dense(size, activation=activation, use_bias=False) for _ in factors[:-1]]
        + [layers.Dense(size, use_bias=False)]
    )
    model.set_weights([np.eye(size, dtype=np.float32) * np.float32(f) for f in factors])
    return model


def towards_the_boundary(model, x, result, seed, directions=30):
    """The nearest images of another class along random and gradient directions: (batch,)."""
    rng = np.random.default_rng(seed)
    nearest = np.full(len(x), np.inf)
    image = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(image)
        logits = tf.cast(model(image, training=False), tf.float64)
        own = tf.one_hot(result.predicted, logits.shape[1], dtype=tf.float64)
        scaled = logits / tf.maximum(tf.reduce_max(tf.abs(logits)), 1e-300)
        margin = tf.reduce_sum(own * scaled, 1) - tf.reduce_max(scaled - 1e9 * own, 1)
    gradient = -np.asarray(tape.gradient(margin, image), np.float64)
    for k in range(directions):
        step = gradient if k == 0 else rng.normal(size=x.shape)
        length = np.linalg.norm(step, axis=1, keepdims=True)
        step = step / np.where(length > 0, length, 1) * result.bound[:, None].astype(float)
        for share in (0.9999, 0.5, 0.1, 0.01, 1e-4):
            moved = (x + share * step).astype(np.float32)
            distance = np.linalg.norm(moved.astype(np.float64) - x, axis=1)
            changed = np.asarray(model(moved, training=False)).argmax(1) != result.predicted
            nearest = np.where(changed & (distance < nearest), distance, nearest)
    return nearest


def assert_nothing_inside(model, x, **options):
    result = robustness(model, x, **options)
    nearest = towards_the_boundary(model, x, result, 0)
    # elsewhere the bound holds in exact arithmetic
    assert (nearest >= result.bound)[result.proved_in_float32].all()
    return result


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e-10, 1e10, 1e20])
@pytest.mark.parametrize("tighten", [True, False])
def test_bounds_do_not_depend_on_the_units_of_layers(scale, tighten, rng):
    x = rng.normal(size=(20, 6)).astype(np.float32)
    expected = robustness(small_net(), x, tighten=tighten)
    for model in (small_net(head=scale), small_net(1 / scale, scale)):
        result = assert_nothing_inside(model, x, tighten=tighten)
        np.testing.assert_allclose(result.bound, expected.bound, rtol=1e-3)
        np.testing.assert_array_equal(result.proved_in_float32, expected.proved_in_float32)


@pytest.mark.parametrize("scale", [1e-38, 1e-36, 1e-34, 1e-32, 1e-30, 1e30, 1e36])
def test_nothing_is_claimed_at_the_end_of_the_range(scale, rng):
    x = rng.normal(size=(20, 6)).astype(np.float32)
    exact = robustness(small_net(), x).bound
    for model in (small_net(head=scale), small_net(first=scale)):
        result = assert_nothing_inside(model, x)
        # the search tries other radii in other units
        assert (result.bound <= exact * 1.1 + 1e-4).all()


@pytest.mark.parametrize("factors", [(1, 1e-20), (1e-20, 1), (1e30, 1e-25, 1e-20), (1e-30, 1e35)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_chains_whose_products_underflow(factors, activation):
    """The classes change at sqrt(1/2)."""
    model = identity_net(*factors, activation=activation)
    result = robustness(model, np.float32([[2, 1], [1, 2]]))
    assert (result.bound <= np.sqrt(0.5)).all()


def test_images_that_a_layer_flushes_to_zero():
    """A change of 1e-10 turns a product of 1.17e-38, which counts as zero, into a normal number."""
    first, last = layers.Dense(1, use_bias=False), layers.Dense(2)
    model = keras.Sequential([keras.Input((1,)), first, last])
    first.set_weights([np.float32([[1e-30]])])
    last.set_weights([np.float32([[-1e38, 0]]), np.float32([1, 0])])
    result = robustness(model, np.float32([[1.17e-8]]))
    assert result.bound[0] < 1e-9 or not result.proved_in_float32[0]


@pytest.mark.parametrize("activation", ["softplus", "sigmoid", "silu", "gelu", "elu"])
@pytest.mark.parametrize("pixels", [40, 60, 100, 130])
def test_units_that_are_far_on_the_flat_side(activation, pixels):
    """Features of 1e-22, from ordinary weights and pixels, whose squares underflow."""
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((pixels,)), layers.Dense(8, activation=activation), layers.Dense(3)]
    )
    kernel = -np.abs(rng.normal(size=(pixels, 8)))
    last = rng.normal(size=(8, 3))
    model.set_weights([np.float32(w) for w in (kernel, np.zeros(8), last, np.zeros(3))])
    assert_nothing_inside(model, rng.random((20, pixels)).astype(np.float32))


def test_max_pooling_of_tiny_and_huge_values(rng):
    image = rng.normal(size=(10, 6, 6, 2)).astype(np.float32)
    bounds = []
    for scale in (1e-25, 1.0, 1e31):
        inputs = keras.Input((6, 6, 2))
        pooled = layers.MaxPooling2D(3, 2, padding="same")(layers.Rescaling(scale)(inputs))
        model = keras.Model(inputs, layers.Dense(3, use_bias=False)(layers.Flatten()(pooled)))
        randomise(model, 2)
        kernel = model.layers[-1].get_weights()[0]
        model.layers[-1].set_weights([kernel / np.float32(scale)])
        bounds.append(robustness(model, image, tighten=True).bound)
    assert (bounds[1] > 0).all()
    np.testing.assert_allclose(bounds[0], bounds[1], rtol=1e-3)
    assert (bounds[2] <= bounds[1] * 1.001).all()


def test_what_overflows_is_not_certified():
    """The class never changes in exact arithmetic; far away the logits are not numbers."""
    hidden, last = layers.Dense(3), layers.Dense(2)
    model = keras.Sequential([keras.Input((2,)), hidden, last])
    randomise(model, 0)
    last.set_weights([np.zeros((3, 2), np.float32), np.float32([1, 0])])
    result = robustness(model, np.ones((1, 2), np.float32))
    assert 1e20 < result.bound[0] < 1e31
    hidden.set_weights([np.full((2, 3), 1e20, np.float32), np.zeros(3, np.float32)])
    assert robustness(model, np.ones((1, 2), np.float32)).bound[0] < 1e17
    far = np.full((1, 2), 3e38, np.float32)
    assert np.isnan(np.asarray(model(far))).any()


def test_inputs_of_every_size(rng):
    """Huge images lose their margins to rounding; no class changes within what is left."""
    model = small_net()
    for size in (1e-30, 1e-10, 1e5, 1e15, 1e19, 1e25, 1e30, 1e36):
        x = (rng.normal(size=(8, 6)) * size).astype(np.float32)
        result = assert_nothing_inside(model, x)
        assert np.isfinite(result.bound).all()


@pytest.mark.parametrize("scale", [2.0**-100, 1e-25, 1.0, 1e25, 2.0**120])
def test_sums_are_rounded_up(scale, rng):
    for shape in ((7,), (3, 5, 2), (200,)):
        x = np.float32(scale) * rng.normal(size=(40, *shape)).astype(np.float32)
        exact = np.linalg.norm(x.reshape(40, -1).astype(np.float64), axis=1)
        above = np.asarray(upper_norm(tf.constant(x)), np.float64) / exact - 1
        assert (above >= 0).all() and (above < 1e-4).all()
    assert np.isnan(upper_norm(tf.constant([[np.nan, 1.0]]))[0])
    np.testing.assert_array_equal(upper_norm(tf.zeros((2, 3))), 0)


@pytest.mark.parametrize("weight", [1e-35, 1e-20, 1.0, 1e20])
@pytest.mark.parametrize("size", [1e-25, 1e-15, 1.0, 1e15])
def test_the_support_function_of_tiny_and_huge_sets(weight, size, rng):
    """At least <w, t> for points of the set, and the same in every unit."""
    if not 1e-37 < weight * size < 1e37:
        pytest.skip("the result is no normal number")
    w, box = rng.uniform(0, 1, (1, 2, 9)), rng.uniform(0, 1, (1, 9))
    w[0, 0, :3] = 0
    radius = np.array([1.3])
    plain, scaled = (
        np.asarray(
            support_function_bound(
                *(tf.constant(each, tf.float32) for each in (a * w, b * box, b * radius))
            ),
            np.float64,
        )[0]
        for a, b in ((1.0, 1.0), (weight, size))
    )
    np.testing.assert_allclose(scaled / weight / size, plain, rtol=1e-5)
    t = np.minimum(rng.uniform(0, 1, (20_000, 9)), box[0])
    t *= np.minimum(1, radius / np.linalg.norm(t, axis=1))[:, None]
    assert (plain >= (t @ w[0].T).max(axis=0) * (1 - 1e-7)).all()


def test_norms_of_weights_that_underflow():
    """Row norms and Gram matrices of a layer whose squared weights are no normal numbers."""
    model = identity_net(1e-22, 1.0, activation="tanh")
    result = robustness(model, np.float32([[2, 1]]))
    assert 0 < result.bound[0] <= np.sqrt(0.5)
    assert float(norms.norm(tf.constant([[3e-30, 4e-30]]))[0]) == pytest.approx(5e-30)
