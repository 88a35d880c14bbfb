"""The layer-wise Jacobian penalty against full Jacobians, and the fast gradient sign's loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise

from tfrobust.errors import InputError
from tfrobust.objectives import ContractivePenalty, CrossEntropy, FastGradientSignLoss, Objective
from tfrobust.objectives.contractive import jacobian_norms
from tfrobust.training import fit

layers = keras.layers


def convolutional():
    return randomise(
        keras.Sequential(
            [
                keras.Input((7, 7, 2)),
                layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh"),
                layers.MaxPooling2D(2),
                layers.Conv2D(2, 2),
                layers.Flatten(),
                layers.Dense(4),
                layers.Activation("softplus"),
                layers.Dropout(0.5),
                layers.Dense(3, activation="softmax"),
            ]
        ),
        0,
    )


def jacobian_of(function, value):
    """(outputs, inputs) of one example."""
    value = tf.constant(value)
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = tf.reshape(function(value), [-1])
    rows = tape.jacobian(result, value).numpy()
    return rows.reshape(len(rows), -1)


def test_norms_are_those_of_full_jacobians():
    model, x = convolutional(), np.random.default_rng(0).normal(size=(3, 7, 7, 2))
    x = x.astype(np.float32)
    first, pool, second, flat, dense, smooth = model.layers[:6]
    found = [norm.numpy() for norm in jacobian_norms(model, tf.constant(x))]
    assert len(found) == 3
    for row in range(3):
        h = x[row : row + 1]
        expected = [np.linalg.norm(jacobian_of(first, h))]
        h = pool(first(h)).numpy()
        expected.append(np.linalg.norm(jacobian_of(second, h)))
        h = flat(second(h)).numpy()
        expected.append(np.linalg.norm(jacobian_of(lambda v: smooth(dense(v)), h)))
        np.testing.assert_allclose([norm[row] for norm in found], expected, rtol=1e-4)


def value_of(term, model, x, labels):
    tensors = {"images": tf.constant(x), "labels": tf.constant(labels)}
    from tfrobust.classifier import logits_model

    return term(Objective((term,)).forward(logits_model(model), tensors, training=False))


@pytest.mark.parametrize(
    "term", [ContractivePenalty((0.3, 0.1, 2.0)), FastGradientSignLoss(0.05, weight=0.7)]
)
def test_derivatives_by_differences(term):
    rng = np.random.default_rng(1)
    model, x = convolutional(), rng.normal(size=(4, 7, 7, 2)).astype(np.float32)
    labels = rng.integers(0, 3, 4).astype(np.int32)
    with tf.GradientTape() as tape:
        value = value_of(term, model, x, labels)
    gradients = tape.gradient(value, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        slope = 0.0 if gradient is None else np.asarray(gradient)
        step = rng.normal(size=variable.shape).astype(np.float32)
        before = variable.numpy()
        variable.assign(before + 1e-3 * step)
        up = float(value_of(term, model, x, labels))
        variable.assign(before - 1e-3 * step)
        down = float(value_of(term, model, x, labels))
        variable.assign(before)
        expected = pytest.approx(float(np.sum(slope * step)), rel=3e-2, abs=3e-3)
        assert (up - down) / 2e-3 == expected, variable.path


def test_the_loss_at_the_shifted_image():
    rng = np.random.default_rng(0)
    model, x = convolutional(), rng.random((5, 7, 7, 2), np.float32)
    labels = rng.integers(0, 3, 5).astype(np.int32)
    z = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(z)
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(z))
    shifted = x + 0.2 * np.sign(tape.gradient(losses, z).numpy())
    for value_range, images in ((None, shifted), ((0.0, 1.0), np.clip(shifted, 0, 1))):
        term = FastGradientSignLoss(0.2, weight=0.5, value_range=value_range)
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(images)).numpy()
        found = float(value_of(term, model, x, labels))
        assert found == pytest.approx(0.5 * losses.mean(), rel=1e-4)


def test_both_train():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    x = (rng.normal(size=(60, 7, 7, 2)) + labels[:, None, None, None] - 1).astype(np.float32)
    first = {}
    for weight in (0.0, 1.0):
        model = convolutional()
        history = fit(
            model,
            (x, labels),
            CrossEntropy(0.5) + FastGradientSignLoss(0.05) + ContractivePenalty(weight),
            optimizer=keras.optimizers.Adam(1e-2),
            epochs=4,
            batch_size=20,
            progress=False,
        )
        records = history.to_frame()
        assert {"fast_gradient_sign_loss", "contractive_penalty"} <= set(records)
        norms = jacobian_norms(model, tf.constant(x))
        first[weight] = sum(float(tf.reduce_mean(norm)) for norm in norms)
    assert first[1.0] < 0.95 * first[0.0]


def test_what_has_no_such_penalty():
    x = np.zeros((2, 4), np.float32)
    labels = np.array([0, 1], np.int32)
    linear = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(InputError, match="the model is linear"):
        value_of(ContractivePenalty(1.0), linear, x, labels)
    normalised = keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(name="bn"), layers.Dense(3), layers.Dense(2)]
    )
    with pytest.raises(InputError, match=r"not BatchNormalization \('bn'\)"):
        value_of(ContractivePenalty(1.0), normalised, x, labels)
    deep = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(2)])
    with pytest.raises(InputError, match="2 weights of the contractive penalty for 1 hidden"):
        value_of(ContractivePenalty((1.0, 2.0)), deep, x, labels)
    inputs = keras.Input((4,))
    branch = keras.Model(inputs, layers.Dense(2)(layers.Add()([layers.Dense(4)(inputs), inputs])))
    with pytest.raises(InputError, match="is for chains"):
        value_of(ContractivePenalty(1.0), branch, x, labels)
    for wrong in (-1.0, (1.0, float("nan"))):
        with pytest.raises(InputError, match="weight must be"):
            ContractivePenalty(wrong)
    with pytest.raises(InputError, match="epsilon must be positive"):
        FastGradientSignLoss(0.0)
