"""Attacks that try hard to get inside the certified radius, on trained networks and real data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust
from tfrobust import data
from tfrobust.bounds import robustness

layers = keras.layers


def trained(model, images, labels, epochs=1, rate=1e-3):
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def mlp(features, hidden, classes):
    return keras.Sequential(
        [
            keras.Input((features,)),
            *(layers.Dense(width, activation="tanh") for width in hidden),
            layers.Dense(classes),
        ]
    )


def lenet():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(20, 5),
            layers.MaxPooling2D(2),
            layers.Conv2D(50, 5),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


def small_residual():
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for filters in (8, 16):
        branch = layers.Conv2D(filters, 3, strides=filters // 8, padding="same", use_bias=False)(x)
        branch = layers.ReLU()(layers.BatchNormalization()(branch))
        branch = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(branch))
        skip = x if filters == 8 else layers.Conv2D(filters, 1, strides=2)(x)
        x = layers.ReLU()(layers.Add()([branch, skip]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def projected_gradient_descent(model, x, labels, radius, starts, steps, rng):
    """Projected gradient descent on the margin inside each example's ball: (batch,) successes."""
    shape = [-1] + [1] * (x.ndim - 1)
    success = np.zeros(len(x), bool)
    is_label = tf.one_hot(labels, int(model.output_shape[-1]))

    @tf.function
    def step(change, centre, size):
        with tf.GradientTape() as tape:
            tape.watch(change)
            logits = model(centre + change, training=False)
            other = tf.reduce_max(logits - 1e9 * is_label, axis=1)
            gap = other - tf.reduce_sum(is_label * logits, axis=1)
        perturbed = change + size * tfrobust.norms.unit(tape.gradient(gap, change))
        return tfrobust.norms.project_ball(perturbed, radius), gap

    for _ in range(starts):
        change = rng.normal(size=x.shape).astype(np.float32)
        length = np.asarray(tfrobust.norms.norm(change)).reshape(shape)
        change = tf.constant(change / length * radius.reshape(shape))
        for k in range(steps):
            size = tf.constant(radius.reshape(shape) * (0.5 if k < steps // 2 else 0.1), tf.float32)
            change, gap = step(change, tf.constant(x), size)
            success |= gap.numpy() > 0
    return success


def assert_attacks_stay_outside(model, x, *, low, high, starts, steps, wagner):
    result = robustness(model, x)
    assert result.tightened and (result.bound >= result.untightened).all()
    assert (result.bound[result.margin > 0] > 0).all()
    rng = np.random.default_rng(0)
    radius = result.bound * np.float32(0.9999)
    success = projected_gradient_descent(model, x, result.predicted, radius, starts, steps, rng)
    assert not success.any()
    for attack, settings in (
        ("carlini_wagner", {"steps": wagner, "binary_search_steps": 5, "stepsize": 0.05}),
        ("deepfool", {}),
        ("fast_gradient_sign", {}),
    ):
        distance = tfrobust.minimal(
            model, x, attack, value_range=(low, high), batch_size=500, **settings
        ).distance
        assert (distance >= result.bound).all(), attack
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hidden"), [("iris", (5,)), ("wine", (5, 3))])
def test_mlps(name, hidden):
    train = data.load(name, "train")
    model = trained(mlp(train.images.shape[1], hidden, 3), *train.arrays, epochs=60, rate=0.02)
    low, high = train.value_range
    assert_attacks_stay_outside(
        model, train.images, low=low, high=high, starts=10, steps=10, wagner=50
    )


@pytest.mark.slow
def test_small_residual_network_on_digits():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    model = trained(small_residual(), *train.arrays, epochs=3, rate=3e-3)
    assert_attacks_stay_outside(
        model, test.images[:100], low=0, high=1, starts=3, steps=10, wagner=10
    )


@pytest.mark.slow
def test_spambase(data_dir):
    train = data.load("spambase", "train")
    model = trained(mlp(57, (7, 5, 3), 2), *train.arrays, epochs=20, rate=5e-3)
    low, high = train.value_range
    images = train.images[:1000]
    assert_attacks_stay_outside(model, images, low=low, high=high, starts=20, steps=20, wagner=200)


@pytest.mark.slow
@pytest.mark.parametrize("build", [lenet, small_residual])
def test_convolutional_networks_on_mnist(build, data_dir):
    train, test = data.load("mnist", "train"), data.load("mnist", "test")
    model = trained(build(), *train.arrays, epochs=1)
    assert_attacks_stay_outside(
        model, test.images[:1000], low=0, high=1, starts=10, steps=20, wagner=60
    )
