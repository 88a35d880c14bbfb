"""Certified bounds: no smaller perturbation is ever found, on plain and on nasty networks."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import (
    disc,
    next_piecewise_linear_net,
    nothing_inside,
    piecewise_linear_net,
    randomise,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust
from tfrobust.bounds import UnsupportedLayerError, register_rule, robustness
from tfrobust.layers import LocalResponseNormalization, LpPooling2D
from tfrobust.training import computing_in

layers = keras.layers


def _image(x):
    return layers.Reshape((4, 4, 2))(layers.Dense(32)(x))


def _mlp(*activations):
    def build(x):
        for activation in activations:
            x = layers.Dense(6, activation=activation)(x)
        return x

    return build


def _residual(x):
    x = layers.Dense(5, activation="relu")(x)
    branch = layers.Dense(5)(layers.Dense(4, activation="relu")(x))
    return layers.ReLU()(layers.Add()([x, branch]))


def _convolutional(x):
    x = layers.Conv2D(3, 3, padding="same")(_image(x))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    branch = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, layers.Add()([x, branch])])
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    return layers.GlobalAveragePooling2D()(x)


def _pooled(x):
    x = layers.Conv2D(4, 2)(_image(x))
    x = layers.MaxPooling2D(2, strides=1)(x)
    x = layers.AveragePooling2D(2, padding="same")(layers.Conv2D(3, 1, activation="tanh")(x))
    return layers.Flatten()(x)


def _normalized(x):
    x = LocalResponseNormalization(alpha=0.3)(_image(x))
    x = LpPooling2D(2, p=1.5)(layers.LeakyReLU(0.3)(x))
    return layers.Flatten()(layers.ZeroPadding2D(1)(x))


def _merged(x):
    x = layers.Dense(6, activation="silu")(x)
    other = layers.Dense(6, activation="gelu")(x)
    far = layers.Minimum()([layers.Maximum()([x, other]), layers.Average()([x, other])])
    return keras.ops.relu(far - x) + layers.Activation("linear")(other)


def _separable(x):
    x = layers.SeparableConv2D(4, 3, activation="hard_silu")(_image(x))
    return layers.Flatten()(layers.SeparableConv2D(3, 2, activation="softsign")(x))


NETS = {
    "linear": lambda x: x,
    "merged": _merged,
    "separable": _separable,
    "relu": _mlp("relu"),
    "deep_relu": _mlp("relu", "relu", "relu"),
    "tanh": _mlp("tanh", "sigmoid"),
    "others": _mlp("softplus", "elu", "leaky_relu", "relu6", "selu"),
    "residual": _residual,
    "convolutional": _convolutional,
    "pooled": _pooled,
    "normalized": _normalized,
}


# made of what the others are made of
ALIKE = ("deep_relu", "residual", "separable")
COSTLY = ("convolutional", "pooled", "normalized", "separable")


def plane_net(name, classes=3):
    """A network of two inputs."""
    inputs = keras.Input((2,))
    return keras.Model(inputs, layers.Dense(classes)(NETS[name](inputs)))


@functools.cache
def piecewise_linear(seed):
    """A network, inputs, and their tightened bounds, which several tests read."""
    model, x = piecewise_linear_net(seed)
    return model, x, robustness(model, x)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 7))]
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in sorted(NETS)],
)
def test_brute_force_in_two_dimensions(name, part):
    """Dozens of networks of each kind, with a dozen examples each."""
    rng = np.random.default_rng(1 + part)
    model = plane_net(name)
    points = disc(300, rng)
    count, ratios = 3 if name in COSTLY else 8, []
    for seed in range(part * count, (part + 1) * count):
        randomise(model, seed, scale=rng.choice([0.3, 1.0, 2.0]))
        x = rng.normal(size=(12, 2)).astype(np.float32)
        x[:3] = np.round(x[:3])  # zeros tie windows and kinks
        result = robustness(model, x, tighten=True)
        coarse = result.untightened
        assert (result.bound >= coarse).all() and (coarse >= 0).all()
        assert nothing_inside(model, x, np.minimum(result.bound, 1e3), points), seed
        ratios.append(np.median(result.bound / np.maximum(coarse, 1e-12)))
    assert np.median(ratios) >= 1 - 1e-6


def test_bounds_are_exact_for_linear_classifiers():
    rng = np.random.default_rng(0)
    model = randomise(keras.Sequential([keras.Input((7,)), layers.Dense(4)]), 0)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_weights())
    logits = x @ kernel + bias
    c = logits.argmax(1)
    exact = [
        min(
            (row[k] - row[j]) / np.linalg.norm(kernel[:, k] - kernel[:, j])
            for j in range(4)
            if j != k
        )
        for row, k in zip(logits, c, strict=True)
    ]
    for tighten in (False, True):
        result = robustness(model, x, tighten=tighten)
        assert result.proved_in_float32.all()
        assert (result.bound <= exact).all()
        np.testing.assert_allclose(result.bound, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_tightened_bound_is_exact_where_the_network_is_locally_linear(seed):
    """Far from every kink the only loss is the slack."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((5,))
    hidden = layers.Dense(8, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    randomise(model, seed)
    model.get_layer("hidden").bias.assign(rng.choice([-20.0, 20.0], 8))
    # a boundary nearer than any kink
    z = tfrobust.predict_logits(model, np.zeros((1, 5), np.float32))[0]
    model.layers[-1].bias.assign(model.layers[-1].bias - z + rng.uniform(0, 0.5, 3))
    x = rng.normal(size=(10, 5)).astype(np.float32)
    gradients = tfrobust.jacobian(model, x)
    logits = tfrobust.predict_logits(model, x)
    for row, z, bound in zip(gradients, logits, robustness(model, x).bound, strict=True):
        c = z.argmax()
        exact = min((z[c] - z[j]) / np.linalg.norm(row[c] - row[j]) for j in range(3) if j != c)
        assert bound <= exact * (1 + 1e-5)
        assert bound >= exact * 0.98


@settings(max_examples=1)
@given(seed=st.integers(0, 2**32 - 1))
def test_attacks_find_nothing_inside(seed):
    model, x = next_piecewise_linear_net(seed, count=6)
    result = robustness(model, x)
    low, high = float(x.min()) - 20, float(x.max()) + 20
    for attack in ("fast_gradient_sign", "gradient", "deepfool"):
        distance = tfrobust.minimal(model, x, attack, value_range=(low, high)).distance
        assert (distance >= result.bound).all(), attack


def test_tightening_never_loosens_and_often_helps():
    model, x, tightened = piecewise_linear(0)
    loose = robustness(model, x, tighten=False).bound
    np.testing.assert_array_equal(tightened.untightened, loose)
    tight = tightened.bound
    assert (tight >= loose).all()
    assert np.median(tight / loose) > 1.2


def test_many_classes_are_followed_in_turn():
    """More margins than are followed back at a time: none is forgotten."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(12, activation="relu")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(40)(hidden)), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    result = robustness(model, x, tighten=True)
    assert nothing_inside(model, x, result.bound, disc(500, rng))
    assert (result.bound > 1.05 * result.untightened).mean() > 0.5


def test_users_can_register_a_layer():
    @keras.saving.register_keras_serializable("test")
    class Sine(layers.Layer):
        def call(self, x):
            return tf.sin(3 * x)

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(3)(Sine(name="wave")(layers.Dense(5)(inputs))))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    with pytest.raises(UnsupportedLayerError, match=r"'Sine' of 'wave'.*Conv2D.*register_rule"):
        robustness(model, x)

    @register_rule(Sine)
    def sine(layer, input_shape):
        assert input_shape == (5,)
        return 3.0

    result = robustness(model, x, tighten=True)
    assert nothing_inside(model, x, result.bound, disc(500, np.random.default_rng(0)))
    assert (result.bound > 0).all() and "Lipschitz constant 3" in result.layers[1].rule
    register_rule(Sine)(lambda layer, shape: float("nan"))
    with pytest.raises(ValueError, match=r"'wave'.*finite"):
        robustness(model, x)


def test_results_can_be_read():
    model, x, result = piecewise_linear(0)
    assert result.bound.dtype == np.float32 and result.predicted.dtype == np.int32
    assert result.rules == "certified" and result.tightened
    np.testing.assert_array_equal(result.predicted, tfrobust.predict_logits(model, x).argmax(1))
    frame = result.to_frame()
    assert len(frame) == len(x) and frame["bound"].median() == result.median()
    # kappa grows by each layer's constant, from the input on
    first, second = result.layers[:2]
    assert first.kappa.shape == (len(x),) and first.name and first.kind and first.rule
    assert (second.kappa > 0).all()


def test_bad_input_is_an_error():
    model, x = piecewise_linear_net(0)
    with pytest.raises(ValueError, match="rules"):
        robustness(model, x, rules="proved")
    with pytest.raises(ValueError, match="tighten"):
        robustness(model, x, rules="thesis", tighten=True)
    with pytest.raises(ValueError, match="NaN"):
        robustness(model, x * np.nan)
    with pytest.raises(ValueError, match="shape"):
        robustness(model, x[:, :4])

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, rows):
            return self.dense(rows)

    with pytest.raises(UnsupportedLayerError, match="subclassed"):
        robustness(Subclassed(), np.ones((2, 3), np.float32))
    loose = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(UnsupportedLayerError, match="fixed sizes"):
        robustness(loose, np.ones((2, 8, 8, 1), np.float32))
    with computing_in("mixed_float16"):
        half = keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu"), layers.Dense(3)])
    with pytest.raises(ValueError, match="computes in float16"):
        robustness(half, np.ones((2, 5), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["a GPU"])
        with pytest.raises(ValueError, match="TensorFloat-32 is on"):
            robustness(model, x)
    model.layers[-1].bias.assign(np.full(model.layers[-1].bias.shape, np.inf))
    with pytest.raises(ValueError, match="finite"):
        robustness(model, x)


@pytest.mark.parametrize("depth_radius", [1, 5])
def test_response_normalization_over_few_channels(depth_radius):
    layer = LocalResponseNormalization(depth_radius=depth_radius, alpha=0.5)
    inputs = keras.Input((2,))
    hidden = layers.Reshape((1, 1, 3))(layers.Dense(3)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(hidden))))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    result = robustness(model, x)
    assert (result.bound > 0).all()
    assert nothing_inside(model, x, result.bound, disc(400, np.random.default_rng(0)))


def test_averages_over_windows_wider_than_the_image():
    """What is left of such a window is a mean of fewer places, which moves more."""
    inputs = keras.Input((1, 1, 1))
    mean = layers.AveragePooling2D(3, strides=1, padding="same")(inputs)
    both = layers.Concatenate()([layers.Flatten()(layers.ReLU()(mean)), layers.Flatten()(mean)])
    last = layers.Dense(2)
    model = keras.Model(inputs, last(both))
    last.set_weights([np.float32([[-100, 0], [-0.01, 0]]), np.float32([1, 0])])
    x = -np.linspace(0.1, 3, 30, dtype=np.float32).reshape(-1, 1, 1, 1)
    bound = robustness(model, x).bound
    # the other class begins just above zero
    assert (bound <= 0.0101 - x.ravel()).all()
    assert (bound > 0.5 * np.abs(x.ravel())).all()


def test_padded_max_pooling_is_tightened():
    """As much as with the zeros that a layer puts there."""
    inputs = keras.Input((5, 5, 1))
    hidden = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    last = layers.Dense(3)
    padded = keras.Model(
        inputs, last(layers.Flatten()(layers.MaxPooling2D(2, padding="same")(hidden)))
    )
    zeros = layers.MaxPooling2D(2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(hidden))
    model = keras.Model(inputs, last(layers.Flatten()(zeros)))
    randomise(model, 1)
    x = np.random.default_rng(0).random((6, 5, 5, 1)).astype(np.float32)
    result, expected = robustness(padded, x).bound, robustness(model, x).bound
    np.testing.assert_allclose(result, expected, rtol=0.1)
    assert np.median(result / robustness(padded, x, tighten=False).bound) > 1.5
