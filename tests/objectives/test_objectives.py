"""Objectives against NumPy and finite differences over inputs and weights, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import double_precision, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.objectives import (
    AlignmentPenalty,
    CrossEntropy,
    DoubleBackprop,
    ForwardPass,
    LastLayerRobustness,
    Objective,
    Term,
    WeightDecay,
)

layers = keras.layers
TERMS = [
    CrossEntropy(0.7),
    DoubleBackprop(3.0),
    DoubleBackprop(50.0, penalty_scale="batch_mean"),
    WeightDecay(0.01),
    AlignmentPenalty(0.2),
]


def problem(seed=0, activation="softplus", count=6):
    """A float64 convolutional classifier, images and labels."""
    with double_precision():
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1), dtype="float64"),
                layers.Conv2D(3, 3, activation=activation),
                layers.MaxPooling2D(2),
                layers.BatchNormalization(),
                layers.Flatten(),
                layers.Dense(4),
            ]
        )
    randomise(model, seed)
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.normal(size=(count, 6, 6, 1)))
    return model, x, tf.constant(rng.integers(0, 4, count), tf.int32)


def value(term, model, x, labels, training=False):
    objective = term if isinstance(term, Objective) else Objective((term,))
    batch = objective.forward(model, {"images": x, "labels": labels}, training=training)
    return tf.add_n(list(objective.parts(batch).values()))


def numpy_losses(model, x, labels):
    z = np.asarray(model(x, training=False))
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), np.asarray(labels)]


def numpy_gradients(model, x, labels, of, step=1e-6):
    """Input gradients of each example's loss or label logit by central differences."""
    x = np.asarray(x)
    result = np.zeros_like(x)
    for place in np.ndindex(x.shape[1:]):
        shift = np.zeros(x.shape[1:])
        shift[place] = step
        if of == "loss":
            up, down = (
                numpy_losses(model, x + shift, labels),
                numpy_losses(model, x - shift, labels),
            )
        else:
            rows = np.arange(len(x)), np.asarray(labels)
            up, down = (np.asarray(model(x + s, training=False))[rows] for s in (shift, -shift))
        result[(slice(None), *place)] = (up - down) / (2 * step)
    return result


def test_cross_entropy_against_numpy():
    model, x, labels = problem()
    expected = 0.5 * numpy_losses(model, x, labels).mean()
    assert float(value(CrossEntropy(0.5), model, x, labels)) == pytest.approx(expected, rel=1e-9)


def test_double_backprop_against_finite_differences_of_the_loss():
    model, x, labels = problem()
    gradients = numpy_gradients(model, x, labels, "loss")
    expected = 2.5 * (gradients**2).sum(axis=(1, 2, 3)).mean()
    assert float(value(DoubleBackprop(2.5), model, x, labels)) == pytest.approx(expected, rel=1e-5)


def test_batch_mean_differentiates_the_mean_of_the_loss():
    """As the released code does: tf.gradients of the batch mean, squared, averaged over images."""
    model, x, labels = problem(count=5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = model(x, training=False)
        mean = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z))
    gradient = tape.gradient(mean, x)
    expected = 7 * float(tf.reduce_mean(tf.reduce_sum(gradient**2, axis=[1, 2, 3])))
    term = DoubleBackprop(7.0, penalty_scale="batch_mean")
    assert float(value(term, model, x, labels)) == pytest.approx(expected, rel=1e-9)
    printed = float(value(DoubleBackprop(7.0), model, x, labels))
    assert printed == pytest.approx(5**2 * expected, rel=1e-9)


def test_alignment_penalty_against_finite_differences_of_the_logit():
    model, x, labels = problem()
    gradients = numpy_gradients(model, x, labels, "logit").reshape(len(x), -1)
    flat = np.asarray(x).reshape(len(x), -1)
    products = (flat**2).sum(1) * (gradients**2).sum(1) - (flat * gradients).sum(1) ** 2
    found = float(value(AlignmentPenalty(0.3), model, x, labels))
    assert found == pytest.approx(0.3 * products.mean(), rel=1e-5)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_alignment_penalty_is_not_negative(seed):
    assert float(value(AlignmentPenalty(1.0), *problem(seed, "relu"))) >= -1e-9


def test_alignment_penalty_vanishes_for_parallel_gradients():
    with double_precision():
        model = keras.Sequential([keras.Input((3,), dtype="float64"), layers.Dense(2)])
    direction = np.array([1.0, -2.0, 0.5])
    model.set_weights([np.stack([direction, -direction], axis=1), np.zeros(2)])
    x = tf.constant(np.outer([1.0, -3.0, 0.2], direction))
    labels = tf.constant([0, 1, 0])
    assert float(value(AlignmentPenalty(1.0), model, x, labels)) == pytest.approx(0, abs=1e-12)


def test_weight_decay_counts_trainable_weights_only():
    model, x, labels = problem()
    expected = 0.1 * sum((v.numpy() ** 2).sum() for v in model.trainable_variables)
    assert len(model.trainable_variables) < len(model.variables)
    assert float(value(WeightDecay(0.1), model, x, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term.name}-{term.weight}")
def test_weight_gradients_against_finite_differences(term, activation, training):
    """Along random directions in weight space, through batch statistics in training mode too."""
    model, x, labels = problem(3, activation)
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        total = value(term, model, x, labels, training)
    sources = [v.value for v in variables]
    zero = tf.UnconnectedGradients.ZERO
    gradients = tape.gradient(total, sources, unconnected_gradients=zero)
    rng = np.random.default_rng(1)
    step = 1e-6
    for _ in range(3):
        directions = [rng.normal(size=v.shape) for v in variables]
        slope = sum(float(tf.reduce_sum(g * d)) for g, d in zip(gradients, directions, strict=True))
        ends = []
        for sign in (1, -1):
            for v, d in zip(variables, directions, strict=True):
                v.assign_add(sign * step * d)
            ends.append(float(value(term, model, x, labels, training)))
            for v, d in zip(variables, directions, strict=True):
                v.assign_sub(sign * step * d)
        expected = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(expected, rel=2e-4, abs=1e-7)


def test_terms_add_up_and_keep_their_names():
    model, x, labels = problem()
    objective = CrossEntropy() + DoubleBackprop(2.0) + WeightDecay(0.01)
    batch = objective.forward(model, {"images": x, "labels": labels}, training=False)
    parts = objective.parts(batch)
    assert list(parts) == ["cross_entropy", "double_backprop", "weight_decay"]
    alone = [float(value(term, model, x, labels)) for term in objective.terms]
    np.testing.assert_allclose([float(part) for part in parts.values()], alone, rtol=1e-9)
    assert objective == CrossEntropy() + (DoubleBackprop(2.0) + WeightDecay(0.01))


def test_gradients_are_computed_once_and_only_where_needed(monkeypatch):
    model, x, labels = problem()
    plain = Objective((CrossEntropy(),)).forward(
        model, {"images": x, "labels": labels}, training=False
    )
    with pytest.raises(RuntimeError, match="input_gradients=True"):
        _ = plain.loss_gradients
    calls = []
    original = ForwardPass._pull_back
    monkeypatch.setattr(
        ForwardPass, "_pull_back", lambda self, *given: calls.append(1) or original(self, *given)
    )
    batch = (CrossEntropy() + DoubleBackprop(1.0)).forward(
        model, {"images": x, "labels": labels}, training=False
    )
    first, second = DoubleBackprop(1.0)(batch), DoubleBackprop(2.0)(batch)
    assert float(second) == pytest.approx(2 * float(first))
    assert len(calls) == 1


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("term", [CrossEntropy, DoubleBackprop, WeightDecay, AlignmentPenalty])
def test_weights_must_be_finite_and_not_negative(term, weight):
    with pytest.raises(ValueError, match="weight must be finite and not negative"):
        term(weight)


def test_unknown_scale():
    with pytest.raises(ValueError, match=r"per_example.*batch_mean.*'mean'"):
        DoubleBackprop(1.0, penalty_scale="mean")


def test_two_terms_of_a_kind_need_names():
    with pytest.raises(ValueError, match=r"two terms named 'cross_entropy'.*named\("):
        CrossEntropy() + CrossEntropy(2.0)
    with pytest.raises(ValueError, match="two terms named 'same'"):
        CrossEntropy().named("same") + WeightDecay(1.0).named("same")
    with pytest.raises(ValueError, match="letters, digits and underscores, got 'a term'"):
        CrossEntropy().named("a term")
    model, x, labels = problem()
    objective = CrossEntropy(0.5) + CrossEntropy(2.0).named("second") + DoubleBackprop(1.0)
    batch = objective.forward(model, {"images": x, "labels": labels}, training=False)
    parts = objective.parts(batch)
    assert list(parts) == ["cross_entropy", "second", "double_backprop"]
    assert float(parts["second"]) == pytest.approx(4 * float(parts["cross_entropy"]))
    assert objective.describe()[1] == {"term": "second", "kind": "cross_entropy", "weight": 2.0}
    assert CrossEntropy().named("a") == CrossEntropy().named("a") != CrossEntropy().named("b")
    assert DoubleBackprop(1.0).named("a").needs_input_gradients
    assert not CrossEntropy().named("a").needs_input_gradients


def test_only_terms_with_recordable_settings_add_up():
    class Bare(Term):
        def __call__(self, batch):
            return 0.0

    for other in (1.0, "cross_entropy", Bare()):
        with pytest.raises(TypeError):
            CrossEntropy() + other
    with pytest.raises(TypeError, match="Bare is not a term: derive it from Term and make it a"):
        Objective((Bare(),))


def test_a_missing_tensor_is_named():
    model, x, labels = problem()
    batch = Objective((CrossEntropy(),)).forward(
        model, {"images": x, "labels": labels}, training=False
    )
    with pytest.raises(ValueError, match="the tensor 'targets', but the data has only images, lab"):
        _ = batch.tensors["targets"]


def test_description_is_plain_json():
    import json

    objective = CrossEntropy() + DoubleBackprop(10.0, penalty_scale="batch_mean")
    assert json.loads(json.dumps(objective.describe())) == [
        {"term": "cross_entropy", "weight": 1.0},
        {
            "term": "double_backprop",
            "weight": 10.0,
            "penalty_scale": "batch_mean",
            "examples_per_mean": None,
        },
    ]


@pytest.mark.parametrize("of", ["predicted", "label"])
def test_last_layer_robustness_is_theorem_3_6(of):
    rng = np.random.default_rng(0)
    hidden = keras.layers.Dense(4, activation="tanh")
    model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(3)])
    x = rng.normal(size=(6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 6).astype(np.int32)
    term = LastLayerRobustness(0.7, of=of)
    tensors = {"images": tf.constant(x), "labels": tf.constant(labels)}
    batch = Objective((term,)).forward(model, tensors, training=True)
    kernel, bias = (np.asarray(w, np.float64) for w in model.layers[-1].get_weights())
    h = np.asarray(hidden(x), np.float64)
    z = h @ kernel + bias
    expected = [
        min(
            (z[i, y] - z[i, j]) / np.linalg.norm(kernel[:, y] - kernel[:, j])
            for j in range(3)
            if j != y
        )
        for i, y in enumerate(labels if of == "label" else z.argmax(axis=1))
    ]
    assert (min(expected) < 0) == (of == "label")
    assert float(term(batch)) == pytest.approx(-0.7 * np.mean(expected), rel=1e-5)

    def value():
        return term(Objective((term,)).forward(model, tensors, training=True))

    with tf.GradientTape() as tape:
        loss = value()
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert np.isfinite(gradient).all()
        step = rng.normal(size=variable.shape).astype(np.float32)
        before = variable.numpy()
        variable.assign(before + 1e-3 * step)
        up = float(value())
        variable.assign(before - 1e-3 * step)
        down = float(value())
        variable.assign(before)
        assert (up - down) / 2e-3 == pytest.approx(
            float(np.sum(gradient * step)), rel=2e-2, abs=2e-4
        )
    with pytest.raises(ValueError, match="dense layer"):
        bare = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), keras.layers.Identity()])
        term(Objective((term,)).forward(bare, tensors, training=True))
