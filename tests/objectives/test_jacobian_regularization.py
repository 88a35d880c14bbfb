"""Jacobian regularization against NumPy, the whole Jacobian, and the law of its projections."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradient_penalties import (
    CLASSES,
    derivative,
    forward,
    gradients_of,
    numpy_derivative,
    numpy_jacobians,
    problem,
    value_of,
)
from helpers.nets import double_precision, randomise
from scipy.stats import beta, kstest

import tfrobust
from tfrobust.errors import InputError
from tfrobust.objectives import ForwardPass, InterpretationRegularization, JacobianRegularization

layers = keras.layers
FORMS = [
    ("norm", "per_example"),
    ("norm", "batch"),
    ("half_square", "per_example"),
    ("printed", "per_example"),
    ("printed", "batch"),
]
EXACT = FORMS[:3]


def of_squares(squares, form, norm_scale, classes):
    """A penalty of weight 1 of squared norms or their estimates, (batch,)."""
    if form == "half_square":
        return squares.mean() / 2
    if form == "printed":
        squares = squares / classes
    return np.sqrt(squares.sum()) if norm_scale == "batch" else np.sqrt(squares).mean()


@pytest.mark.parametrize(("form", "norm_scale"), EXACT)
def test_value_and_derivative_against_numpy(form, norm_scale):
    model, tensors = problem()
    term = JacobianRegularization(0.32, form=form, norm_scale=norm_scale)

    def function(weights):
        squares = (numpy_jacobians(weights, tensors["images"].numpy()) ** 2).sum(axis=(1, 2))
        return 0.32 * of_squares(squares, form, norm_scale, CLASSES)

    weights = model.get_weights()
    assert value_of(term, model, tensors) == pytest.approx(function(weights), rel=1e-9)
    expected = numpy_derivative(function, weights)
    for mine, theirs in zip(derivative(term, model, tensors), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)
    assert abs(expected[2]).max() > 0.01


def directions(tensors, projections, seed=None):
    """What a term draws, (batch, projections, K): the gradients of <v, x> of the identity."""
    count = len(tensors["images"])
    x = tf.zeros((count, CLASSES), tf.float64)
    drawn = []

    class Watched(ForwardPass):
        def gradient_along(self, direction):
            found = super().gradient_along(direction)
            drawn.append(found.numpy())
            return found

    batch = Watched(
        identity(),
        {"images": x, "labels": tf.zeros(count, tf.int32)},
        training=False,
        input_gradients=True,
        seed=None if seed is None else tf.constant(seed, tf.int32),
    )
    JacobianRegularization(1.0, projections=projections)(batch)
    return np.stack(drawn, axis=1)


@functools.cache
def identity(classes=CLASSES):
    with double_precision():
        model = keras.Sequential(
            [keras.Input((classes,), dtype="float64"), layers.Dense(classes, use_bias=False)]
        )
    model.set_weights([np.eye(classes)])
    return model


@pytest.mark.parametrize(("form", "norm_scale"), FORMS)
def test_projected_value_and_derivative_against_numpy(form, norm_scale):
    model, tensors = problem()
    term = JacobianRegularization(0.32, projections=3, form=form, norm_scale=norm_scale)
    v = directions(tensors, 3, seed=(4, 5))

    def function(weights):
        jacobians = numpy_jacobians(weights, tensors["images"].numpy())
        products = np.einsum("bnk,bkf->bnf", v, jacobians)
        squares = CLASSES / 3 * (products**2).sum(axis=(1, 2))
        return 0.32 * of_squares(squares, form, norm_scale, CLASSES)

    weights = model.get_weights()
    assert value_of(term, model, tensors, seed=(4, 5)) == pytest.approx(function(weights), rel=1e-9)
    expected = numpy_derivative(function, weights)
    found = derivative(term, model, tensors, seed=(4, 5))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


def test_the_exact_norm_is_that_of_the_whole_jacobian():
    """A convolutional network in single precision; max pooling and ReLU."""
    head = [layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(5)]
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), layers.Conv2D(4, 3, activation="relu"), *head]
    )
    x = np.random.default_rng(0).normal(size=(7, 8, 8, 2)).astype("float32")
    norms = np.linalg.norm(tfrobust.jacobian(model, x).reshape(7, -1), axis=1)
    tensors = {"images": tf.constant(x), "labels": tf.constant([0, 1, 2, 3, 4, 0, 1])}
    value = functools.partial(value_of, model=model, tensors=tensors)
    term = JacobianRegularization(2.0)
    assert value(term) == pytest.approx(2 * norms.mean(), rel=1e-5)
    term = JacobianRegularization(2.0, norm_scale="batch")
    assert value(term) == pytest.approx(2 * np.sqrt((norms**2).sum()), rel=1e-5)
    term = JacobianRegularization(2.0, form="half_square")
    assert value(term) == pytest.approx((norms**2).mean(), rel=1e-5)
    measured = term.measured(forward(term, model, tensors))
    assert list(measured) == list(term.measured_names) == ["jacobian_norm"]
    assert float(measured["jacobian_norm"]) == pytest.approx(norms.mean(), rel=1e-5)


def draws(term, batches=40, rows=100):
    """Means over `rows` draws for one image, the exact norm, and the mean and its error."""
    model, tensors = problem(count=1)
    norm = np.linalg.norm(numpy_jacobians(model.get_weights(), tensors["images"].numpy()))
    tensors = {name: tf.repeat(tensor, rows, axis=0) for name, tensor in tensors.items()}
    compiled = tf.function(lambda seed: term(forward(term, model, tensors, seed=seed)))
    found = np.array([compiled(tf.constant([7, step])) for step in range(batches)])
    return found, norm, found.mean(), found.std(ddof=1) / np.sqrt(batches)


@pytest.mark.parametrize("projections", [1, 3])
def test_estimates_of_the_square_are_unbiased(projections):
    term = JacobianRegularization(2.0, projections=projections, form="half_square")
    _, norm, mean, error = draws(term)
    assert abs(mean - norm**2) < 3 * error
    assert error < 0.02 * norm**2


def test_the_root_of_an_estimate_is_below_the_norm_on_average():
    _, norm, one, error = draws(JacobianRegularization(1.0, projections=1))
    assert one < norm - 5 * error
    _, _, many, error = draws(JacobianRegularization(1.0, projections=16), batches=20)
    assert one < many - 5 * error
    assert many == pytest.approx(norm, rel=0.02)


def test_equation_14_as_printed_is_the_norm_over_the_root_of_the_classes():
    found, norm, mean, _ = draws(JacobianRegularization(1.0, projections=1, form="printed"), rows=1)
    assert (found < norm).all()
    assert 0.7 < mean / norm * np.sqrt(CLASSES) < 1
    _, _, mean, error = draws(JacobianRegularization(1.0, projections=16, form="printed"), 10)
    assert mean == pytest.approx(norm / np.sqrt(CLASSES), rel=0.02)
    assert error < 0.01 * norm


def test_directions_are_uniform_on_the_sphere():
    """The square of a coordinate along any axis has a beta distribution."""
    tensors = {"images": np.zeros((2000, 1))}
    v = directions(tensors, 2, seed=(1, 2))
    assert v.shape == (2000, 2, CLASSES)
    np.testing.assert_allclose((v**2).sum(axis=2), 1, rtol=1e-5)
    expected = beta(0.5, (CLASSES - 1) / 2).cdf
    random = np.random.default_rng(0).normal(size=(3, CLASSES))
    for axis in (*np.eye(CLASSES), *random):
        for one in (v[:, 0], v[:, 1]):
            along = one @ axis / np.linalg.norm(axis)
            assert kstest(along**2, expected).pvalue > 1e-3
            assert abs(along.mean()) < 4 / np.sqrt(2000 * CLASSES)
    assert kstest((v[:, 0] * v[:, 1]).sum(axis=1) ** 2, expected).pvalue > 1e-3  # independent
    assert kstest((v[1:, 0] * v[:-1, 0]).sum(axis=1) ** 2, expected).pvalue > 1e-3


def test_draws_differ_by_step_and_example_and_repeat_by_seed():
    tensors = {"images": np.zeros((6, 1))}
    v = directions(tensors, 2, seed=(3, 0))
    flat = np.concatenate([v.reshape(12, -1), directions(tensors, 2, seed=(3, 1)).reshape(12, -1)])
    flat = np.concatenate([flat, directions(tensors, 2, seed=(4, 0)).reshape(12, -1)])
    assert len(np.unique(flat.round(6), axis=0)) == 36
    np.testing.assert_array_equal(v, directions(tensors, 2, seed=(3, 0)))
    # the largest seed
    assert np.isfinite(directions(tensors, 2, seed=(2**31 - 1, 2**31 - 1))).all()


@pytest.mark.parametrize("projections", [None, 3])
def test_one_pass_per_class_or_projection_serves_value_and_record(projections, monkeypatch):
    model, tensors = problem()
    term = JacobianRegularization(2.0, projections=projections)
    batch = forward(term, model, tensors, seed=(1, 2))
    calls, original = [], ForwardPass.gradient_along
    monkeypatch.setattr(
        ForwardPass, "gradient_along", lambda self, v: calls.append(1) or original(self, v)
    )
    measured = term.measured(batch)["jacobian_norm"]
    assert float(term(batch)) == pytest.approx(2 * float(measured), rel=1e-12)
    assert len(calls) == (projections or CLASSES)
    JacobianRegularization(1.0, projections=2)(batch)  # other draws
    assert len(calls) == (projections or CLASSES) + 2


@pytest.mark.parametrize(
    ("projections", "form", "norm_scale"),
    [(None, *exact) for exact in EXACT] + [(2, *estimate) for estimate in FORMS],
)
def test_nothing_is_nan_where_all_is_zero(projections, form, norm_scale):
    model, tensors = problem()
    model.set_weights([np.zeros_like(array) for array in model.get_weights()])
    term = JacobianRegularization(1.0, projections=projections, form=form, norm_scale=norm_scale)
    assert value_of(term, model, tensors) == 0
    gradients = tf.function(gradients_of, autograph=False)(term, model, tensors)
    assert all((gradient.numpy() == 0).all() for gradient in gradients)


@pytest.mark.parametrize("projections", [None, 1])
def test_a_batch_of_equal_norms_is_the_root_of_its_size_times_one(projections):
    """With the identity as Jacobian every projection gives K exactly."""
    count = 9
    tensors = {"images": tf.zeros((count, CLASSES), tf.float64)}
    tensors["labels"] = tf.zeros(count, tf.int32)
    for norm_scale, expected in (("per_example", 1), ("batch", 3)):
        term = JacobianRegularization(5.0, projections=projections, norm_scale=norm_scale)
        found = value_of(term, identity(), tensors, seed=(1, 1))
        assert found == pytest.approx(5 * expected * np.sqrt(CLASSES), rel=1e-6)


SECOND_DERIVATIVES = [
    InterpretationRegularization(0.7, 0.3),
    InterpretationRegularization(0.7, 0.3, norm_scale="batch", threshold=0.5),
    JacobianRegularization(0.5, form="half_square"),
    JacobianRegularization(0.5, projections=2, norm_scale="batch"),
    JacobianRegularization(0.5, projections=1, form="printed"),
]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("term", SECOND_DERIVATIVES, ids=lambda term: term.name)
def test_weight_gradients_through_convolutions_and_batch_statistics(term, activation):
    """Against finite differences along a random direction in weight space, in training mode."""
    with double_precision():
        inputs = keras.Input((6, 6, 1), dtype="float64")
        first = layers.Conv2D(3, 3, activation=activation)
        head = [layers.MaxPooling2D(2), layers.BatchNormalization(), layers.Flatten()]
        model = keras.Sequential([inputs, first, *head, layers.Dense(4)])
    randomise(model, 3)
    rng = np.random.default_rng(3)
    tensors = {"images": rng.normal(size=(5, 6, 6, 1)), "targets": rng.normal(size=(5, 6, 6, 1))}
    tensors = {name: tf.constant(array) for name, array in tensors.items()}
    tensors["labels"] = tf.constant([0, 1, 2, 3, 1])
    options = {"training": True, "seed": (1, 2)}
    gradients = derivative(term, model, tensors, **options)
    variables = model.trainable_variables
    steps = [rng.normal(size=v.shape) for v in variables]
    slope = sum((g * d).sum() for g, d in zip(gradients, steps, strict=True))
    ends = []
    for size in (1e-6, -2e-6):
        for variable, direction in zip(variables, steps, strict=True):
            variable.assign_add(size * direction)
        ends.append(value_of(term, model, tensors, **options))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=2e-4, abs=1e-7)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must be finite and not negative"),
        ({"weight": float("nan")}, "weight must be finite and not negative"),
        ({"projections": 0}, "projections must be a whole number of at least 1, got 0"),
        ({"projections": 1.5}, "projections must be a whole number"),
        ({"form": "square"}, "form must be .*half_square.*'square'"),
        ({"form": "printed"}, "is an estimate: give projections"),
        ({"norm_scale": "mean"}, r"norm_scale must be .*per_example.*batch.*'mean'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        JacobianRegularization(**{"weight": 1.0, **settings})


def test_a_number_of_projections_may_be_any_whole_number():
    terms = [JacobianRegularization(1.0, projections=n) for n in (2, 2.0, np.int64(2))]
    model, tensors = problem()
    assert len({value_of(term, model, tensors, seed=(0, 1)) for term in terms}) == 1
    assert [type(term.describe()["projections"]) for term in terms] == [int] * 3
