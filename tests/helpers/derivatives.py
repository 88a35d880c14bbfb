"""Derivatives by finite differences, and a small network in NumPy and in Keras."""

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import all_layers, exact_batch_statistics

layers = keras.layers


def second_derivative(model, x, direction, exact):
    """Derivative along `direction` of the squared input gradient of a function of model(x)."""
    weights = tf.constant(np.random.default_rng(5).normal(size=(len(x), 3)))

    def squared_gradient(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(weights * tf.sin(model(values, training=True)))
        return tf.reduce_sum(tape.gradient(total, values) ** 2)

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = squared_gradient(x)
        return float(tf.reduce_sum(tape.gradient(value, x) * direction))

    step = 1e-6
    numeric = (squared_gradient(x + step * direction) - squared_gradient(x - step * direction)) / (
        2 * step
    )
    if exact:
        with exact_batch_statistics():
            return differentiate(), float(numeric)
    return differentiate(), float(numeric)


# a small network, once in NumPy float64 and once in Keras ------------------------------------

ACTIVATIONS = {
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
}
SHAPE = (6, 5, 2)
CLASSES = 4


def images(count=3, shape=SHAPE, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def network(activation, pool, last=None):
    """Convolution, batch normalization, activation, 2 x 2 pooling, dense, activation, dense."""
    pooling = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}[pool]
    inputs = layers.Input(SHAPE)
    h = layers.Conv2D(3, (3, 2), bias_initializer="normal", name="convolution")(inputs)
    h = layers.BatchNormalization(name="normalization")(h)
    h = pooling(2)(layers.Activation(activation)(h))
    h = layers.Dense(6, activation=activation, name="hidden")(layers.Flatten()(h))
    model = keras.Model(inputs, layers.Dense(CLASSES, activation=last, name="head")(h))
    give_moving_statistics(model)
    return model


def give_moving_statistics(model, seed=0):
    """Batch normalization in inference mode that is not the identity."""
    rng = np.random.default_rng(seed)
    for layer in all_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.5, 2, size))
            layer.beta.assign(rng.normal(size=size))
            layer.moving_mean.assign(rng.normal(size=size))
            layer.moving_variance.assign(rng.uniform(0.3, 3, size))


def numpy_network(model, activation, pool):
    """The same function of one float64 image, and how far it is from its nearest kink."""
    act = ACTIVATIONS[activation]
    weights = {
        name: [np.asarray(w, np.float64) for w in model.get_layer(name).weights]
        for name in ("convolution", "normalization", "hidden", "head")
    }

    def forward(x):
        kernel, bias = weights["convolution"]
        height, width, _, filters = kernel.shape
        z = np.empty((x.shape[0] - height + 1, x.shape[1] - width + 1, filters))
        for i, j, k in np.ndindex(z.shape):
            z[i, j, k] = (x[i : i + height, j : j + width] * kernel[..., k]).sum() + bias[k]
        gamma, beta, mean, variance = weights["normalization"]
        z = (z - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        h = act(z)
        blocks = h[: h.shape[0] // 2 * 2, : h.shape[1] // 2 * 2]
        blocks = blocks.reshape(h.shape[0] // 2, 2, h.shape[1] // 2, 2, filters)
        blocks = blocks.transpose(0, 2, 4, 1, 3).reshape(-1, 4)
        pooled = blocks.max(axis=1) if pool == "max" else blocks.mean(axis=1)
        before = pooled @ weights["hidden"][0] + weights["hidden"][1]
        values = act(before) @ weights["head"][0] + weights["head"][1]
        gaps = [np.inf]
        if activation in ("relu", "leaky_relu"):
            gaps += [np.abs(z).min(), np.abs(before).min()]
        if pool == "max":
            second, first = np.sort(blocks, axis=1)[:, -2:].T
            # ReLUs that are off together stay equal
            gaps.append((first - second)[first > 0].min(initial=np.inf))
            if activation not in ("relu",):
                gaps.append((first - second).min())
        return values, min(gaps)

    return forward


def finite_differences(function, x, step=1e-6):
    """Central differences of a function of one float64 image: (values, *x.shape)."""
    columns = []
    for index in np.ndindex(x.shape):
        plus, minus = x.copy(), x.copy()
        plus[index] += step
        minus[index] -= step
        columns.append((function(plus) - function(minus)) / (2 * step))
    return np.moveaxis(np.array(columns), 0, -1).reshape(-1, *x.shape)


def away_from_kinks(forward, count=3):
    candidates = images(200).astype(np.float64)
    kept = [x for x in candidates if forward(x)[1] > 1e-4][:count]
    assert len(kept) == count
    # exact in float32, so that both see the same point
    return np.stack(kept)
