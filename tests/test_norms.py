"""Norms, unit vectors and projections against float64 NumPy and numerical optimisation."""

import math

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfrobust.norms import clip_to_range, flatten, inner, norm, project_ball, unit

ORDERS = [1, 2, math.inf]
MANY = settings(max_examples=60)

# zero, or of a size whose square neither under- nor overflows in float32
entries = st.one_of(
    st.just(0.0),
    st.floats(2**-10, 1024, width=32),
    st.floats(-1024, -(2**-10), width=32),
)
batches = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3)), elements=entries
)
radii = st.one_of(st.just(0.0), st.floats(2**-10, 2048, width=32))
orders = st.sampled_from(ORDERS)


def exact_norm(x, p):
    return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), ord=p, axis=1)


def exact_l1_projection(row, radius):
    """Shrink by the threshold that solves the KKT condition sum(max(|x| - t, 0)) = radius."""
    magnitudes = np.abs(np.asarray(row, np.float64))
    if magnitudes.sum() <= radius:
        return np.asarray(row, np.float64)
    threshold = scipy.optimize.brentq(
        lambda t: np.maximum(magnitudes - t, 0).sum() - radius, 0, magnitudes.max(), xtol=1e-13
    )
    return np.sign(row) * np.maximum(magnitudes - threshold, 0)


def exact_projection(x, radius, p):
    x = np.asarray(x, np.float64)
    if p == math.inf:
        return np.clip(x, -radius, radius)
    if p == 2:
        norms = exact_norm(x, 2).reshape(-1, *[1] * (x.ndim - 1))
        return np.where(norms > radius, x * radius / np.maximum(norms, 1e-300), x)
    return np.stack([exact_l1_projection(row.ravel(), radius).reshape(row.shape) for row in x])


@pytest.mark.parametrize("p", ORDERS)
def test_norm_matches_numpy(rng, p):
    x = rng.normal(size=(7, 5, 4, 3)).astype(np.float32)
    found = norm(x, p)
    assert found.shape == (7,)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, exact_norm(x, p), rtol=1e-6)


@MANY
@given(batches, orders)
def test_norm_of_any_batch(x, p):
    np.testing.assert_allclose(norm(x, p), exact_norm(x, p), rtol=1e-5)


@MANY
@given(batches, orders, st.integers(-110, 100))
def test_norm_of_any_size(x, p, exponent):
    """The same digits at every scale, and those of the plain formula where that one can be used."""
    plain = tf.sqrt(tf.reduce_sum(tf.square(flatten(x)), axis=1)) if p == 2 else norm(x, p)
    np.testing.assert_array_equal(norm(x, p), plain)
    # entries that stay normal numbers
    scaled = np.where(np.abs(x) >= 1, x, 0)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(norm(factor * scaled / 1024, p), norm(scaled, p) * factor / 1024)


def test_norm_of_what_is_not_finite():
    values = norm(tf.constant([[math.nan, 1.0], [math.inf, 1.0]]))
    assert math.isnan(values[0]) and math.isinf(values[1])


def test_norm_keeps_float64(rng):
    x = rng.normal(size=(3, 8))
    assert norm(x).dtype == tf.float64
    np.testing.assert_allclose(norm(x), exact_norm(x, 2), rtol=1e-14)


def test_norm_default_is_euclidean(rng):
    x = rng.normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_allclose(norm(x), exact_norm(x, 2), rtol=1e-6)


@pytest.mark.parametrize("p", ORDERS)
def test_gradient_of_norm_at_zero_is_finite(p):
    x = tf.constant([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = norm(x, p)
    gradient = tape.gradient(values, x).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(values, exact_norm(x, p))
    if p == 2:
        np.testing.assert_array_equal(gradient[0], 0)
        np.testing.assert_allclose(gradient[1], [0.6, 0, -0.8], rtol=1e-6)


def test_second_derivative_of_norm_at_zero_is_finite():
    x = tf.zeros([2, 3])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = norm(x)
        gradient = tape.gradient(values, x)
    assert np.isfinite(outer.gradient(gradient, x)).all()


@pytest.mark.parametrize("p", [0, 3, -1, "2", None, math.nan])
@pytest.mark.parametrize("function", [norm, unit, lambda x, p: project_ball(x, 1.0, p)])
def test_other_orders_are_refused(function, p):
    with pytest.raises(ValueError, match=r"p must be 1, 2 or infinity, got"):
        function(tf.ones([2, 3]), p)


def test_flatten(rng):
    x = rng.normal(size=(2, 3, 4))
    np.testing.assert_array_equal(flatten(x), x.reshape(2, 12))
    assert flatten(np.ones([5], np.float32)).shape == (5, 1)


def test_flatten_with_unknown_batch_size_keeps_the_features_static():
    function = tf.function(flatten).get_concrete_function(tf.TensorSpec([None, 3, 4]))
    assert function.output_shapes.as_list() == [None, 12]


def test_inner_matches_numpy(rng):
    a, b = rng.normal(size=(2, 6, 4, 5, 3)).astype(np.float32)
    found = inner(a, b)
    assert found.shape == (6,)
    exact = np.einsum("nabc,nabc->n", a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@MANY
@given(batches, orders)
def test_unit_has_norm_one_and_the_same_direction(x, p):
    found = unit(x, p)
    assert found.shape == x.shape
    norms = exact_norm(x, p)
    np.testing.assert_allclose(exact_norm(found, p), norms > 0, rtol=1e-5)
    scaled = found.numpy() * norms.reshape(-1, 1, 1)
    np.testing.assert_allclose(scaled, x, rtol=1e-5, atol=1e-6)


@MANY
@given(batches, radii, orders)
def test_projection_matches_the_exact_one(x, radius, p):
    found = project_ball(x, radius, p)
    assert found.shape == x.shape
    assert found.dtype == tf.float32
    scale = max(1.0, np.abs(x).max())
    np.testing.assert_allclose(found, exact_projection(x, radius, p), rtol=1e-4, atol=1e-5 * scale)


@MANY
@given(batches, radii, orders)
@example(np.full((1, 5, 3), 256.1095, np.float32), 1.0, 1)
def test_projection_lands_in_the_ball(x, radius, p):
    assert (exact_norm(project_ball(x, radius, p), p) <= radius * (1 + 1e-5)).all()


@MANY
@given(batches, radii, orders)
def test_projection_is_idempotent(x, radius, p):
    once = project_ball(x, radius, p)
    scale = max(1.0, np.abs(x).max())
    np.testing.assert_allclose(project_ball(once, radius, p), once, rtol=1e-5, atol=1e-6 * scale)


@MANY
@given(batches, orders)
def test_points_inside_are_left_alone(x, p):
    radius = np.float32(exact_norm(x, p).max() * 1.001 + 1e-3)
    np.testing.assert_array_equal(project_ball(x, radius, p), x)


@pytest.mark.parametrize("p", ORDERS)
def test_projection_is_the_nearest_point_of_the_ball(rng, p):
    """Against a numerical optimiser that knows only the distance and the constraint."""
    x = rng.normal(size=(3, 4)).astype(np.float32) * 2
    radius = 0.8
    found = project_ball(x, radius, p).numpy()
    for row, nearest in zip(x.astype(np.float64), found, strict=True):
        # y = plus - minus keeps the l1 ball smooth
        def split(z):
            return z[:4] - z[4:]

        limits = {
            1: lambda z: radius - z.sum(),
            2: lambda z: radius**2 - np.sum(split(z) ** 2),
            math.inf: lambda z: np.concatenate([radius - split(z), radius + split(z)]),
        }
        solution = scipy.optimize.minimize(
            lambda z: np.sum((split(z) - row) ** 2),
            np.full(8, 0.01),
            bounds=[(0, None)] * 8,
            constraints={"type": "ineq", "fun": limits[p]},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(nearest, split(solution.x), atol=2e-4)


@pytest.mark.parametrize("p", ORDERS)
def test_no_random_point_of_the_ball_is_nearer(rng, p):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    nearest = project_ball(x, 1.0, p).numpy().astype(np.float64)
    distance = np.linalg.norm(nearest - x, axis=1)
    for _ in range(300):
        other = rng.normal(size=x.shape)
        other *= (rng.random(4) / exact_norm(other, p))[:, None]
        # also near the projection, by a convex step within the ball
        for candidate in (other, nearest + 0.01 * (other - nearest)):
            assert (np.linalg.norm(candidate - x, axis=1) >= distance - 1e-6).all()


@pytest.mark.parametrize("p", ORDERS)
def test_one_radius_an_example(rng, p):
    x = rng.normal(size=(4, 3, 2)).astype(np.float32) * 3
    radius = np.array([0.0, 0.5, 1.0, 1e3], np.float32)
    found = project_ball(x, tf.constant(radius), p).numpy()
    each = [project_ball(row[None], float(r), p)[0] for row, r in zip(x, radius, strict=True)]
    np.testing.assert_array_equal(found, np.stack(each))
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_array_equal(found[3], x[3])
    np.testing.assert_allclose(exact_norm(found, p)[1:3], radius[1:3], rtol=1e-5)


@pytest.mark.parametrize("p", ORDERS)
def test_zero_stays_zero(p):
    for radius in (0.0, 1.0):
        np.testing.assert_array_equal(project_ball(tf.zeros([2, 3, 1]), radius, p), 0)


@pytest.mark.parametrize("p", ORDERS)
def test_projection_of_images_in_a_graph_of_unknown_batch_size(rng, p):
    x = rng.normal(size=(3, 4, 4, 2)).astype(np.float32)
    graph = tf.function(
        lambda rows: project_ball(rows, 0.7, p),
        input_signature=[tf.TensorSpec([None, 4, 4, 2])],
    )
    np.testing.assert_allclose(graph(x), exact_projection(x, 0.7, p), atol=1e-5)


def test_l1_projection_of_a_long_vector_is_sparse_and_exact(rng):
    x = rng.normal(size=(2, 3000)).astype(np.float32)
    found = project_ball(x, 5.0, 1).numpy()
    np.testing.assert_allclose(found, exact_projection(x, 5.0, 1), atol=2e-4)
    assert ((found != 0).sum(axis=1) < 300).all()
    np.testing.assert_allclose(np.abs(found).sum(axis=1), 5, rtol=5e-3)


@MANY
@given(batches, st.floats(-10, 0), st.floats(0.5, 10))
def test_clip_to_range(x, low, high):
    np.testing.assert_allclose(
        clip_to_range(x, (low, high)), np.clip(x.astype(np.float64), low, high), atol=1e-6
    )
