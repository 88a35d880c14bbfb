"""Random networks for properties that hold for a whole class of networks."""

import contextlib
import functools

import keras
import numpy as np

import tfrobust

layers = keras.layers


class CountsTraces(layers.Layer):
    """Returns its inputs; `CountsTraces.traces` is how often any of its kind was called."""

    traces = 0

    def call(self, inputs):
        CountsTraces.traces += 1
        return inputs


class Masking(layers.Layer):
    """Returns its inputs, with a mask of those below a number."""

    def __init__(self, below):
        super().__init__()
        self.supports_masking = True
        self.below = below

    def call(self, x):
        return x * 1.0

    def compute_mask(self, x, mask=None):
        return keras.ops.greater(x, self.below)


@contextlib.contextmanager
def double_precision():
    """Layers made in the block compute in double precision, and keep such weights."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def randomise(model, seed, scale=0.6):
    """Every weight random, biases and moving statistics too; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" in variable.path:
            continue
        if variable.name in ("moving_variance", "gamma"):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        else:
            variable.assign(rng.normal(0, scale, variable.shape))
    return model


def piecewise_linear_net(seed, bias=True, count=12):
    """A net inside Theorem 1's class and inputs for it.

    Convolutions, ReLU and leaky ReLU, skip connections, max and average pooling; with `bias`, also
    batch normalisation and affine preprocessing.
    """
    model = randomise(_piecewise_linear(seed, bias), seed, scale=0.4)
    return model, np.random.default_rng(seed).normal(size=(count, 8, 8, 2)).astype("float32")


def next_piecewise_linear_net(seed, bias=True, count=12):
    """The same for many seeds in turn: one of a few models, which has these weights until the next.

    Its functions are compiled once.
    """
    model = randomise(_one_of_few(seed % 5, bias), seed, scale=0.4)
    return model, np.random.default_rng(seed).normal(size=(count, 8, 8, 2)).astype("float32")


@functools.cache
def _one_of_few(structure, bias):
    return _piecewise_linear(structure, bias)


def _piecewise_linear(structure, bias):
    rng = np.random.default_rng(structure)
    inputs = keras.Input((8, 8, 2))
    x = inputs
    if bias and rng.random() < 0.5:
        x = layers.Rescaling(rng.uniform(0.5, 2), offset=rng.normal())(x)
    if bias and rng.random() < 0.5:
        x = layers.Normalization(mean=rng.normal(size=2), variance=rng.uniform(0.5, 2, 2))(x)
    for _ in range(rng.integers(1, 4)):
        filters = int(rng.integers(2, 6))
        x = layers.Conv2D(filters, 3, padding="same", use_bias=bias)(x)
        if bias and rng.random() < 0.7:
            x = layers.BatchNormalization()(x)
        x = layers.LeakyReLU(0.2)(x) if rng.random() < 0.5 else layers.ReLU()(x)
        if rng.random() < 0.5:
            branch = layers.Conv2D(filters, 3, padding="same", activation="relu", use_bias=bias)(x)
            x = layers.Add()([x, branch])
    x = layers.MaxPooling2D(2)(x) if rng.random() < 0.5 else layers.AveragePooling2D(2)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(int(rng.integers(2, 6)), use_bias=bias)(x))


def disc(count, rng):
    """Points of the unit disc, as many on its edge as inside."""
    angle = rng.uniform(0, 2 * np.pi, 2 * count)
    length = np.concatenate([np.sqrt(rng.random(count)), np.ones(count)])
    return (length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)


def nothing_inside(model, x, bound, points):
    """Whether no point of the disc of radius `bound` about any x is in another class."""
    predicted = tfrobust.predict_logits(model, x).argmax(1)
    perturbed = x[:, None] + (bound[:, None, None] * (1 - 1e-6)) * points[None]
    classes = tfrobust.predict_logits(model, perturbed.reshape(-1, 2), batch_size=50_000).argmax(1)
    return (classes.reshape(len(x), -1) == predicted[:, None]).all()


def classifier(shape, *middle):
    """Layers between an input and three logits, and ten random inputs."""
    model = keras.Sequential([keras.Input(shape), *middle, layers.Flatten(), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(10, *shape)).astype(np.float32)
    return model, x


def shaken(model, seed=0):
    """Biases, betas and statistics off their initial values, kernels as they are."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(variable + rng.uniform(0, 0.3, variable.shape))
    return model
