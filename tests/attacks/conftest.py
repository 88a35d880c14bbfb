"""Small classifiers whose adversarials are known, or found quickly."""

import keras
import numpy as np
import pytest


@pytest.fixture
def linear(rng):
    """A 2-class linear model on (6, 6, 1) images, mid-range images, and what is exact for them."""
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    kernel = rng.normal(size=(36, 2)).astype(np.float32)
    bias = np.array([0.1, -0.1], np.float32)
    model.layers[-1].set_weights([kernel, bias])
    normal = (kernel[:, 1] - kernel[:, 0]).astype(np.float64)
    # exact distances on both sides of the hyperplane, with room on all sides for clipping not
    # to matter
    flat = rng.uniform(0.45, 0.55, (16, 36))
    length = np.linalg.norm(normal)
    offset = (flat @ normal + np.float64(bias[1] - bias[0])) / length
    signed = np.geomspace(0.01, 0.5, 16) * np.resize([1, -1], 16)
    x = (flat + np.outer(signed - offset, normal / length)).reshape(16, 6, 6, 1).astype(np.float32)
    margin = np.abs(signed) * length
    return model, x, normal, margin


def make_cnn(classes=5, softmax=False):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", kernel_initializer="he_normal"),
            layers.Flatten(),
            layers.Dense(classes, bias_initializer=keras.initializers.RandomNormal(stddev=0.1)),
            *([layers.Softmax()] if softmax else []),
        ]
    )


@pytest.fixture
def cnn():
    return make_cnn()


@pytest.fixture
def softmax_twins():
    """The same network with and without a softmax at its end."""
    plain, headed = make_cnn(), make_cnn(softmax=True)
    headed.set_weights(plain.get_weights())
    return plain, headed


@pytest.fixture
def images(rng):
    """Images of which some pixels lie on the border of [0, 1]."""
    return np.clip(rng.normal(0.5, 0.4, (24, 8, 8, 1)), 0, 1).astype(np.float32)
