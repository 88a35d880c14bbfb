"""Interpretation regularization against NumPy, finite differences and its own definition."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradient_penalties import (
    CLASSES,
    FEATURES,
    augmented,
    derivative,
    forward,
    gradients_of,
    network,
    numpy_derivative,
    numpy_jacobians,
    pictures,
    problem,
    value_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust import saliency
from tfrobust.data import Share
from tfrobust.errors import InputError
from tfrobust.objectives import ForwardPass, InterpretationRegularization

layers = keras.layers
COLUMNS = ["cosine", "gradient_norm", "zero_gradients", "zero_targets"]
SCALES = ["per_example", "batch"]


def numpy_cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def numpy_value(weights, tensors, lambda_d, lambda_m, norm_scale, threshold):
    """Eq. (9) without the cross-entropy."""
    x, labels, maps = (np.asarray(tensors[name]) for name in ("images", "labels", "targets"))
    if threshold is not None:
        mean, std = maps.mean(axis=1, keepdims=True), maps.std(axis=1, keepdims=True)
        maps = np.where(np.abs(maps - mean) <= threshold * std, 0, maps)
    gradients = numpy_jacobians(weights, x)[np.arange(len(x)), labels]
    norms = np.linalg.norm(gradients, axis=1)
    magnitude = norms.mean() if norm_scale == "per_example" else np.sqrt((norms**2).sum())
    return -lambda_d * numpy_cosines(gradients, maps).mean() + lambda_m * magnitude


@pytest.mark.parametrize("norm_scale", SCALES)
@pytest.mark.parametrize(
    ("lambda_d", "lambda_m", "threshold"), [(3.0, 0.15, None), (0.7, 2.0, 0.8), (1, 0, 0.1)]
)
def test_value_and_derivative_against_numpy(lambda_d, lambda_m, norm_scale, threshold):
    model, tensors = problem()
    term = InterpretationRegularization(
        lambda_d, lambda_m, norm_scale=norm_scale, threshold=threshold
    )

    def function(weights):
        return numpy_value(weights, tensors, lambda_d, lambda_m, norm_scale, threshold)

    weights = model.get_weights()
    assert value_of(term, model, tensors) == pytest.approx(function(weights), rel=1e-9)
    expected = numpy_derivative(function, weights)
    for mine, theirs in zip(derivative(term, model, tensors), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)
    assert abs(expected[2]).max() > 0.01


def test_what_is_measured_against_numpy():
    model, tensors = problem()
    gradients = numpy_jacobians(model.get_weights(), tensors["images"].numpy())
    gradients = gradients[np.arange(6), tensors["labels"]]
    term = InterpretationRegularization(3.0, 0.5, norm_scale="batch")
    batch = forward(term, model, tensors)
    found = {name: float(value) for name, value in term.measured(batch).items()}
    cosine = numpy_cosines(gradients, tensors["targets"].numpy()).mean()
    norm = np.linalg.norm(gradients, axis=1).mean()
    assert list(found) == list(term.measured_names) == COLUMNS
    assert list(found.values()) == pytest.approx([cosine, norm, 0, 0], rel=1e-9)


@given(
    exponent=st.floats(-30, 30),
    other=st.floats(-30, 30),
    seed=st.integers(0, 100),
    of=st.sampled_from(["maps", "logits"]),
)
@settings(max_examples=16)
def test_the_cosine_depends_on_no_scale(exponent, other, seed, of):
    """In single precision; that of maps may differ among images."""
    model, tensors = linear(seed)
    term = InterpretationRegularization(1.0, 0.0)
    cosine = float(term.measured(forward(term, model, tensors))["cosine"])
    [gradient] = derivative(term, model, tensors)
    factors = 10.0 ** np.array([exponent, other, exponent, other])[:, None]
    if of == "maps":
        tensors["targets"] *= factors.astype("float32")
    else:
        model.set_weights([w * np.float32(10.0**exponent) for w in model.get_weights()])
        gradient = gradient / 10.0**exponent
    scaled = float(term.measured(forward(term, model, tensors))["cosine"])
    assert scaled == pytest.approx(cosine, abs=1e-6)
    [found] = derivative(term, model, tensors)
    np.testing.assert_allclose(found, gradient, atol=1e-5 * abs(gradient).max())


@functools.cache
def one_layer():
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES, use_bias=False)])


def linear(seed=0, count=4):
    """A single-precision linear network, whose gradients are its weights."""
    rng, model = np.random.default_rng(seed), one_layer()
    model.set_weights([rng.normal(size=(FEATURES, CLASSES))])
    x, maps = rng.normal(size=(2, count, FEATURES)).astype("float32")
    labels = tf.constant(rng.integers(0, CLASSES, count), tf.int32)
    return model, {"images": tf.constant(x), "labels": labels, "targets": tf.constant(maps)}


@given(seed=st.integers(0, 1000), lambda_d=st.floats(0, 10), lambda_m=st.floats(0, 10))
@settings(max_examples=15)
def test_the_value_is_within_lambda_d_of_the_norm(seed, lambda_d, lambda_m):
    model, tensors = linear(seed)
    term = InterpretationRegularization(lambda_d, lambda_m)
    norms = np.linalg.norm(model.get_weights()[0], axis=0)[tensors["labels"].numpy()]
    distance = value_of(term, model, tensors) - lambda_m * norms.mean()
    assert abs(distance) <= lambda_d + 1e-5 * (lambda_d + lambda_m) + 1e-30


@pytest.mark.parametrize("sign", [1, -1])
def test_maps_along_and_against_the_gradients(sign):
    model, tensors = linear()
    kernel = model.get_weights()[0].T[tensors["labels"].numpy()]
    tensors["targets"] = tf.constant(sign * kernel * [[1e-5], [1], [30], [4e6]], tf.float32)
    term = InterpretationRegularization(2.0, 0.0)
    assert value_of(term, model, tensors) == pytest.approx(-2 * sign, rel=1e-6)


@pytest.mark.parametrize("norm_scale", SCALES)
def test_norms_of_a_batch_and_of_its_images(norm_scale):
    """For equal norms one is sqrt(batch) times the other."""
    model, tensors = linear(count=9)
    model.set_weights([np.linalg.qr(model.get_weights()[0])[0] * 0.3])
    found = value_of(InterpretationRegularization(0, 2.0, norm_scale=norm_scale), model, tensors)
    assert found == pytest.approx(2 * 0.3 * (3 if norm_scale == "batch" else 1), rel=1e-6)


@pytest.mark.parametrize("threshold", [None, 1.0])
@pytest.mark.parametrize("norm_scale", SCALES)
@pytest.mark.parametrize("zero", ["weights", "targets"])
def test_nothing_is_nan_where_all_is_zero(zero, norm_scale, threshold):
    model, tensors = problem()
    if zero == "weights":
        model.set_weights([np.zeros_like(array) for array in model.get_weights()])
    else:
        tensors["targets"] *= 0
    term = InterpretationRegularization(3.0, 0.5, norm_scale=norm_scale, threshold=threshold)
    compiled = tf.function(gradients_of, autograph=False)
    magnitude = InterpretationRegularization(0.0, 0.5, norm_scale=norm_scale)
    assert value_of(term, model, tensors) == value_of(magnitude, model, tensors)
    for graph, eager, expected in zip(
        compiled(term, model, tensors),
        derivative(term, model, tensors),
        derivative(magnitude, model, tensors),
        strict=True,
    ):
        np.testing.assert_allclose(graph, expected, atol=1e-12)
        np.testing.assert_allclose(eager, expected, atol=1e-12)
    shares = [float(v) for v in term.measured(forward(term, model, tensors)).values()][2:]
    assert shares == [1.0, 0.0] if zero == "weights" else [0.0, 1.0]


def test_zero_gradients_and_zero_maps_count_as_shares_and_move_nothing():
    """A ReLU that is off for three images of eight, and one map that is constant."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "relu"), layers.Dense(2)])
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0.5, 1, (2, 3))
    model.set_weights([kernel, np.zeros(3), rng.normal(size=(3, 2)), np.zeros(2)])
    x = rng.uniform(0.1, 1, (8, 2)) * np.where(np.arange(8) < 3, -1, 1)[:, None]
    maps = rng.normal(size=(8, 2))
    maps[5] = 0.1
    labels = rng.integers(0, 2, 8)
    tensors = [tf.constant(a, t) for a, t in ((x, "float32"), (labels, "int32"), (maps, "float32"))]
    tensors = dict(zip(("images", "labels", "targets"), tensors, strict=True))
    term = InterpretationRegularization(1.0, 0.5, threshold=0.5)
    measured = term.measured(forward(term, model, tensors))
    assert float(measured["zero_gradients"]) == 3 / 8
    assert float(measured["zero_targets"]) == 1 / 8
    whole = derivative(InterpretationRegularization(1.0, 0.0, threshold=0.5), model, tensors)
    rest = {name: tf.gather(t, [3, 4, 6, 7]) for name, t in tensors.items()}
    part = derivative(InterpretationRegularization(1.0, 0.0, threshold=0.5), model, rest)
    for mine, theirs in zip(whole, part, strict=True):
        np.testing.assert_allclose(mine, theirs * 4 / 8, atol=1e-6)


@functools.cache
def flat():
    return keras.Sequential([keras.Input((6, 6, 3)), layers.Flatten(), layers.Dense(1)])


@given(
    seed=st.integers(0, 1000),
    phi=st.floats(0, 3),
    exponent=st.floats(-30, 30),
    offset=st.sampled_from([0.0, 1.0, -100.0]),
)
@settings(max_examples=15)
def test_the_threshold_of_a_step_is_that_of_numpy(seed, phi, exponent, offset):
    rng = np.random.default_rng(seed)
    maps = (rng.normal(offset, 1, (4, 6, 6, 3)) * 10.0**exponent).astype("float32")
    maps[0] = maps[0, 0, 0, 0]
    model, tensors = flat(), {"images": tf.zeros_like(maps), "labels": tf.zeros(4, tf.int32)}
    kept = []
    for threshold, targets in ((phi, maps), (None, saliency.threshold(maps, phi))):
        term = InterpretationRegularization(1.0, 0.0, threshold=threshold)
        batch = forward(term, model, {**tensors, "targets": tf.constant(targets)})
        kept.append([float(value) for value in (term(batch), term.measured(batch)["zero_targets"])])
    assert kept[0] == kept[1]
    assert kept[0][1] >= 1 / 4


def test_a_threshold_in_the_step_counts_padding():
    data = augmented()
    batch = next(iter(data.training_batches(24, Share.of(24), seed=0, epoch=0)))
    model = network()
    found = value_of(InterpretationRegularization(1.0, 0.0, threshold=1.0), model, batch)

    def with_maps(maps):
        tensors = {**batch, "targets": tf.constant(maps)}
        return value_of(InterpretationRegularization(1.0, 0.0), model, tensors)

    assert found == pytest.approx(with_maps(saliency.threshold(batch["targets"], 1.0)), abs=1e-6)
    maps = pictures()[2]
    before = augmented(targets=saliency.threshold(maps, 1.0))
    other = next(iter(before.training_batches(24, Share.of(24), seed=0, epoch=0)))
    assert abs(found - with_maps(other["targets"].numpy())) > 1e-3


def test_gradients_are_those_of_the_pass_with_its_dropout():
    """A linear network without biases: its logits are <x, gradient>, whatever is dropped."""
    head = [layers.Dropout(0.5), layers.Dense(CLASSES, use_bias=False)]
    model = keras.Sequential([keras.Input((40,)), *head])
    x = tf.random.normal((10, 40))
    labels = tf.constant([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    tensors = {"images": x, "labels": labels, "targets": x}
    batch = ForwardPass(model, tensors, training=True, input_gradients=True)
    products = tf.reduce_sum(x * batch.logit_gradients, axis=1)
    chosen = tf.gather(batch.logits, labels, batch_dims=1)
    np.testing.assert_allclose(products, chosen, rtol=1e-5, atol=1e-6)
    v = tf.random.normal((10, CLASSES))
    products = tf.reduce_sum(x * batch.gradient_along(v), axis=1)
    np.testing.assert_allclose(products, tf.reduce_sum(v * batch.logits, 1), rtol=1e-4, atol=1e-5)
    assert 0.3 < np.mean(batch.logit_gradients == 0) < 0.7
    term = InterpretationRegularization(1.0, 0.0)
    expected = numpy_cosines(batch.logit_gradients.numpy(), x.numpy()).mean()
    assert float(term(batch)) == pytest.approx(-expected, rel=1e-5)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lambda_d", "lambda_m", "threshold"])
def test_weights_and_thresholds_must_be_finite_and_not_negative(name, bad):
    settings = {"lambda_d": 1.0, "lambda_m": 1.0, name: bad}
    with pytest.raises(InputError, match=f"{name} must be finite and not negative, got {bad}"):
        InterpretationRegularization(**settings)


def test_an_unknown_norm_scale():
    with pytest.raises(InputError, match=r"norm_scale must be .*per_example.*batch.*'mean'"):
        InterpretationRegularization(1.0, 1.0, norm_scale="mean")


@pytest.mark.parametrize("shape", [(4, FEATURES + 1), (4, 1, FEATURES), (4,)])
def test_maps_of_another_size_than_the_images(shape):
    model, tensors = linear()
    tensors["targets"] = tf.ones(shape)
    with pytest.raises(InputError, match=r"targets have shape .*, images \(5,\): a target map has"):
        value_of(InterpretationRegularization(1.0, 1.0), model, tensors)


def test_missing_maps():
    model, tensors = linear()
    del tensors["targets"]
    with pytest.raises(InputError, match="reads the tensor 'targets', but the data has only"):
        value_of(InterpretationRegularization(1.0, 1.0), model, tensors)
