"""The printed rules against formulas written down a second time, in plain NumPy."""

import keras
import numpy as np
import pytest
from helpers.nets import randomise
from helpers.printed_formulas import normalization_as_printed, responses_as_printed
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust
from tfrobust.bounds import UnsupportedLayerError, register_rule, robustness
from tfrobust.bounds.printed import formulas as printed
from tfrobust.layers import LocalResponseNormalization, LpPooling2D

layers = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:the thesis's printed rules")


def kappas(model, x):
    return robustness(model, x, rules="thesis").layers


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6))
def test_theorem_3_6(seed, classes):
    rng = np.random.default_rng(seed)
    h, w, b = rng.normal(size=(5, 4)), rng.normal(size=(4, classes)), rng.normal(size=classes)
    expected = []
    for row in h:
        z = row @ w + b
        c = z.argmax()
        expected.append(
            min(
                abs(z[j] - z[c]) / np.sqrt(((w[:, j] - w[:, c]) ** 2).sum())
                for j in range(classes)
                if j != c
            )
        )
    np.testing.assert_allclose(printed.last_layer(h, w, b), expected)


def test_theorem_3_6_is_reached_by_the_nearest_boundary():
    rng = np.random.default_rng(0)
    h, w, b = rng.normal(size=(1, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)
    bound = printed.last_layer(h, w, b)[0]
    directions = rng.normal(size=(200_000, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before = (h @ w + b).argmax()
    inside = ((h + 0.999 * bound * directions) @ w + b).argmax(1)
    outside = ((h + 1.05 * bound * directions) @ w + b).argmax(1)
    assert (inside == before).all() and (outside != before).any()


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    activations=st.lists(
        st.sampled_from(["tanh", "sigmoid", "softplus", "relu"]), min_size=1, max_size=3
    ),
)
def test_theorem_4_2_and_algorithm_4_1(seed, activations):
    rng = np.random.default_rng(seed)
    widths = [int(n) for n in rng.integers(2, 6, len(activations))]
    model = keras.Sequential(
        [
            keras.Input((4,)),
            *(layers.Dense(n, activation=a) for n, a in zip(widths, activations, strict=True)),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )
    randomise(model, seed)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    weights = [np.asarray(w, np.float64) for w in model.get_weights()]
    third = np.sqrt(3)
    tables = {
        "tanh": (1, 2 / (3 * third)),
        "sigmoid": (0.25, 1 / (6 * third)),
        "softplus": (1, 0.25),
        "relu": (1, 1),
    }
    for row, result in zip(x, robustness(model, x, rules="thesis").bound, strict=True):
        h, jacobian, first, second = row.astype(np.float64), np.eye(4), 1.0, 0.0
        for k, name in enumerate(activations):
            w, b = weights[2 * k], weights[2 * k + 1]
            a = h @ w + b
            if name == "tanh":
                h, slope = np.tanh(a), 1 / np.cosh(a) ** 2
            elif name == "sigmoid":
                h = 1 / (1 + np.exp(-a))
                slope = h * (1 - h)
            elif name == "softplus":
                h, slope = np.log(1 + np.exp(a)), 1 / (1 + np.exp(-a))
            else:
                h, slope = np.where(a > 0, a, 0), np.where(a > 0, 1.0, 0.0)
            jacobian = np.diag(slope) @ w.T @ jacobian
            r = max(np.abs(w[:, i]).sum() for i in range(w.shape[1]))
            s1, s2 = tables[name]
            first, second = s1 * r * first, s2 * r**2 * first**2 + s1 * r * second
        kappa = printed.last_layer(h[None], weights[-2], weights[-1])[0]
        j, m = np.linalg.norm(jacobian, 2), second * np.sqrt(widths[-1])
        expected = (np.sqrt(j**2 + 2 * m * kappa) - j) / m
        assert result == pytest.approx(expected, rel=1e-4, abs=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_algorithm_4_1_bounds_the_hessians_of_smooth_networks(seed):
    """With Table 4.1's constants mended, M is at least every Hessian's operator norm."""
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    x = rng.normal(size=3)

    def hidden(v):
        return np.tanh(np.tanh(v @ w1) @ w2)

    def hessian(k, eps=1e-4):
        eye = np.eye(3) * eps
        return np.array(
            [
                [
                    hidden(x + a + b)[k]
                    - hidden(x + a - b)[k]
                    - hidden(x - a + b)[k]
                    + hidden(x - a - b)[k]
                    for b in eye
                ]
                for a in eye
            ]
        ) / (4 * eps**2)

    largest = max(np.linalg.norm(hessian(k), 2) for k in range(2))
    # M grows with the second derivative's constant: twice .385 for both layers
    assert largest <= 2.01 * printed.hessian_bound([w1, w2], ["tanh", "tanh"])


def test_theorem_4_2_without_curvature_is_its_limit():
    kappa, jacobian = np.array([0.5, 0.0]), np.array([2.0, 0.0])
    np.testing.assert_allclose(printed.mlp(kappa, jacobian, 0.0, 4), [0.25, 0.0])
    almost = printed.mlp(kappa[:1], jacobian[:1], 1e-9, 4)
    np.testing.assert_allclose(almost, 0.25, rtol=1e-6)


def test_a_convolutional_chain_layer_by_layer():
    rng = np.random.default_rng(0)
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(3, 3, activation="relu", name="c1")(inputs)  # 10
    x = layers.MaxPooling2D(2, name="max")(x)  # 5
    x = LocalResponseNormalization(name="lrn")(x)
    x = layers.Conv2D(4, 2, name="c2")(x)  # 4
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.AveragePooling2D(2, name="mean")(x)  # 2
    x = LpPooling2D(2, strides=1, p=1.5, name="lp")(x)  # 1
    model = keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x)))
    randomise(model, 0)
    images = rng.normal(size=(2, 12, 12, 1)).astype(np.float32)
    result = {layer.name: layer.kappa for layer in kappas(model, images) if layer.kind != "relu"}
    value = {
        layer.name: np.asarray(keras.Model(inputs, layer.output)(images))
        for layer in model.layers[1:]
    }
    kernel, bias = model.get_layer("logits").get_weights()
    expected = printed.last_layer(value["flat"].astype(float), kernel.astype(float), bias)
    for name, step in (
        ("logits", lambda k: k),
        ("flat", lambda k: k),
        ("lp", lambda k: k / (1 * 2 ** (2 / 1.5))),
        ("mean", lambda k: k / 2),
        ("bn", lambda k: normalization_as_printed(k, value["c2"], model.get_layer("bn"))),
        ("c2", lambda k: k / np.linalg.norm(model.get_layer("c2").kernel)),
        ("lrn", lambda k: responses_as_printed(k, value["max"], 2, 2.0, 1e-4, 0.75)),
        ("max", lambda k: k / 5),
        ("c1", lambda k: k / np.linalg.norm(model.get_layer("c1").kernel)),
    ):
        expected = step(expected)
        np.testing.assert_allclose(result[name], expected, rtol=1e-3, atol=1e-7, err_msg=name)


def test_a_global_average_at_the_end():
    """Logits without a dense layer: softmax of the pooled maps themselves."""
    inputs = keras.Input((6, 6, 1))
    maps = layers.Conv2D(3, 3, activation="relu")(inputs)
    model = randomise(keras.Model(inputs, layers.GlobalAveragePooling2D()(maps)), 0)
    model.layers[1].bias.assign([2.0, 3.0, 2.5])
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
    z = np.sort(tfrobust.predict_logits(model, x), axis=1)
    kappa = (z[:, -1] - z[:, -2]) / np.sqrt(2)
    expected = kappa / np.linalg.norm(model.layers[1].kernel)  # 1 x 1 output
    result = robustness(model, x, rules="thesis")
    np.testing.assert_allclose(result.bound, expected, rtol=1e-4)
    assert result.mean() == pytest.approx(expected.mean(), rel=1e-4)
    # Algorithm 5.1 begins with the MLP at the end, which is missing here
    assert result.layers[-1].rule.startswith("Theorem 5.3")


def test_softmax_and_batches_change_nothing():
    inputs = keras.Input((5,))
    model = keras.Model(
        inputs, layers.Dense(3, activation="softmax")(layers.Dense(4, activation="tanh")(inputs))
    )
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    one_batch, small_batches = (
        robustness(model, x, rules="thesis", batch_size=n).bound for n in (100, 2)
    )
    np.testing.assert_allclose(one_batch, small_batches, rtol=1e-5)
    assert kappas(model, x)[0].rule == "Theorem 4.2, Algorithm 4.1"


def test_what_the_thesis_has_no_rule_for():
    inputs = keras.Input((4,))
    branch = layers.Dense(4)(inputs)
    residual = keras.Model(inputs, layers.Dense(2)(layers.Add()([inputs, branch])))
    with pytest.raises(UnsupportedLayerError, match="chain"):
        robustness(residual, np.ones((1, 4), np.float32), rules="thesis")
    odd = keras.Sequential([keras.Input((4,)), layers.ELU(name="odd"), layers.Dense(2)])
    with pytest.raises(UnsupportedLayerError, match=r"'odd'.*Conv2D.*register_rule"):
        robustness(odd, np.ones((1, 4), np.float32), rules="thesis")

    class Half(layers.Layer):
        def call(self, x):
            return x / 2

    register_rule(Half, rules="thesis")(lambda layer, shape, kappa: 2 * kappa)
    halved = keras.Sequential([keras.Input((4,)), Half(), layers.Dense(2)])
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    plain.set_weights([halved.get_weights()[0], halved.get_weights()[1]])
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(
        robustness(halved, x, rules="thesis").bound,
        2 * robustness(plain, x / 2, rules="thesis").bound,
        rtol=1e-5,
    )


def test_activations_without_a_rule_say_so():
    inputs = keras.Input((6, 6, 1))
    maps = layers.Conv2D(2, 3, activation="tanh", name="tanh")(inputs)
    maps = layers.Conv2D(2, 3, activation="relu", name="relu")(maps)
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(maps))), 0)
    rules = {(k.name, k.kind): k.rule for k in kappas(model, np.ones((1, 6, 6, 1), np.float32))}
    assert rules["relu", "relu"] == "Theorem 5.1 (ReLU)"
    assert rules["tanh", "tanh"].startswith("no rule printed")


def test_response_normalization_outside_assumption_5_10():
    inputs = keras.Input((2, 2, 3))
    normalized = LocalResponseNormalization(beta=1.5, name="steep")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(normalized)))
    with pytest.raises(UnsupportedLayerError, match=r"'steep'.*Assumption 5\.10"):
        robustness(model, np.ones((1, 2, 2, 3), np.float32), rules="thesis")
