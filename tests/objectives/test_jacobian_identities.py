"""Identities of section 1 and 3 of Noack 2020, with derivatives that the objectives take."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradient_penalties import CLASSES, FEATURES, forward, problem, value_of
from helpers.nets import double_precision
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.layers import SoftmaxAsLogits
from tfrobust.objectives import InterpretationRegularization, JacobianRegularization

layers = keras.layers
EXACT = JacobianRegularization(1.0)


def rows_of(batch):
    """The Jacobians of a pass, (batch, classes, features)."""
    rows, classes = batch.logits.shape
    ones = tf.one_hot(tf.range(classes), classes, dtype=batch.logits.dtype)
    columns = [batch.gradient_along(tf.repeat(one[None], rows, axis=0)) for one in ones]
    return np.stack(columns, axis=1)


@functools.cache
def networks():
    """The network of `problem`, and the same with probabilities in place of logits."""
    model, _ = problem()
    with double_precision():
        return model, keras.Sequential([model, SoftmaxAsLogits()])


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 20))
@settings(max_examples=10)
def test_footnote_2(seed, scale):
    """J = (diag(p) - p p^T) grad f: of probabilities, of their norm, and of the label's."""
    model, probabilities = networks()
    other, tensors = problem(seed=seed)
    model.set_weights([scale * array for array in other.get_weights()])
    batch, softened = forward(EXACT, model, tensors), forward(EXACT, probabilities, tensors)
    p = softened.logits.numpy()
    factors = np.einsum("bk,kl->bkl", p, np.eye(CLASSES)) - np.einsum("bk,bl->bkl", p, p)
    expected = factors @ rows_of(batch)
    tolerance = 1e-12 + 1e-9 * abs(expected).max()
    np.testing.assert_allclose(rows_of(softened), expected, atol=tolerance)
    norms = np.linalg.norm(expected.reshape(len(p), -1), axis=1)
    assert value_of(EXACT, probabilities, tensors) == pytest.approx(norms.mean(), rel=1e-7)
    chosen = expected[np.arange(len(p)), tensors["labels"]]
    np.testing.assert_allclose(softened.logit_gradients, chosen, atol=tolerance)
    magnitude = value_of(InterpretationRegularization(0.0, 1.0), probabilities, tensors)
    assert magnitude == pytest.approx(np.linalg.norm(chosen, axis=1).mean(), rel=1e-7)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_gradients_along_directions(seed):
    """Along p - y it is the cross-entropy's; along a unit vector the logit's; linear between."""
    model, tensors = problem(seed=seed)
    batch = forward(EXACT, model, tensors)
    y = tf.one_hot(tensors["labels"], CLASSES, dtype=tf.float64)
    along = batch.gradient_along(tf.nn.softmax(batch.logits) - y)
    np.testing.assert_allclose(along, batch.loss_gradients, atol=1e-12)
    np.testing.assert_allclose(batch.gradient_along(y), batch.logit_gradients, atol=1e-12)
    v = np.random.default_rng(seed).normal(size=y.shape)
    expected = np.einsum("bk,bkf->bf", v, rows_of(batch))
    np.testing.assert_allclose(batch.gradient_along(tf.constant(v)), expected, atol=1e-12)
    scaled = forward(EXACT, model, tensors, scale=tf.constant(512.0, tf.float64))
    np.testing.assert_allclose(scaled.gradient_along(tf.constant(v)), expected, atol=1e-12)
    np.testing.assert_allclose(scaled.logit_gradients, batch.logit_gradients, atol=1e-12)


@functools.cache
def linear(classes, features):
    with double_precision():
        return keras.Sequential(
            [
                keras.Input((features,), dtype="float64"),
                layers.Dense(classes, use_bias=False),
            ]
        )


@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([(2, 2), (3, FEATURES), (4, 4), (5, 3)]),
    rank=st.integers(1, 5),
    spread=st.floats(0, 6),
)
@settings(max_examples=25)
def test_equations_2_to_4(seed, size, rank, spread):
    """||J d|| = ||s * V^T d|| <= |s| . |V^T d| = ||s|| ||V^T d|| cos, and ||s|| = ||J||_F."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(size[0], rank)), rng.normal(size=(rank, size[1]))
    matrix = left * 10 ** rng.uniform(-spread, spread, rank) @ right
    model = linear(*size)
    model.set_weights([matrix.T])
    d = rng.normal(size=size[1])
    tensors = {"images": tf.constant(d[None]), "labels": tf.zeros(1, tf.int32)}
    jacobian = rows_of(forward(EXACT, model, tensors))[0]
    np.testing.assert_array_equal(jacobian, matrix)
    _, s, v = np.linalg.svd(jacobian, full_matrices=False)
    rotated = np.abs(v @ d)
    length = np.linalg.norm(jacobian @ d)
    tolerance = 1e-9 * np.linalg.norm(s) * np.linalg.norm(d)
    assert np.linalg.norm(s * rotated) == pytest.approx(length, abs=tolerance)
    bound = s @ rotated
    assert bound >= length - tolerance
    cosine = bound / np.linalg.norm(s) / np.linalg.norm(rotated)
    assert 0 <= cosine <= 1 + 1e-9
    assert bound <= np.linalg.norm(s) * np.linalg.norm(d) + tolerance
    assert value_of(EXACT, model, tensors) == pytest.approx(np.linalg.norm(s), rel=1e-9)
    # no unit vector makes the bound larger
    worst = (s / np.linalg.norm(s)) @ v
    assert s @ np.abs(v @ worst) == pytest.approx(np.linalg.norm(s), rel=1e-9)
