"""The counterexamples to the printed rules, which break no certified bound; and what holds."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust
from tfrobust.bounds import robustness
from tfrobust.bounds.printed import formulas as printed

layers = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:the thesis's printed rules")


def both(model, x):
    x = np.asarray(x, np.float32)
    return float(robustness(model, x, rules="thesis").bound[0]), [
        float(robustness(model, x, tighten=tighten).bound[0]) for tighten in (False, True)
    ]


def changes_class(model, x, perturbation):
    x = np.asarray(x, np.float32)
    before = tfrobust.predict_logits(model, x).argmax()
    return (
        tfrobust.predict_logits(model, x + np.asarray(perturbation, np.float32)).argmax() != before
    )


def against_zero(features, weights, bias):
    """Two logits, one of them 0: their difference is weights . h + bias."""
    layer = layers.Dense(2, name="logits")
    layer.build((None, features))
    kernel = np.zeros((features, 2), np.float32)
    kernel[:, 0] = weights
    layer.kernel.assign(kernel)
    layer.bias.assign([bias, 0])
    return layer


def test_lemma_a4_and_theorem_5_1_convolution():
    """A kernel of ones: its operator norm is far above its Frobenius norm."""
    inputs = keras.Input((8, 8, 1))
    convolution = layers.Conv2D(1, 5, kernel_initializer="ones")
    hidden = layers.Flatten()(convolution(inputs))
    model = keras.Model(inputs, against_zero(16, 1.0, -1.0)(hidden))
    x = np.zeros((1, 8, 8, 1))
    printed_bound, certified = both(model, x)
    assert printed_bound == pytest.approx(0.05, rel=1e-5)
    # the whole is linear: the shortest perturbation is along its gradient
    gradient = tfrobust.input_gradient(model, x.astype(np.float32), [0])
    length = 1 / np.linalg.norm(gradient)
    assert length == pytest.approx(0.01667, abs=2e-5)
    assert changes_class(model, x, gradient / np.linalg.norm(gradient) * length * 1.0001)
    for bound in certified:
        assert bound <= length
    assert certified[1] == pytest.approx(length, rel=1e-3)


def test_theorem_5_6_batch_normalization():
    inputs = keras.Input((2,))
    normalization = layers.BatchNormalization(epsilon=0.0)
    hidden = normalization(inputs)
    normalization.gamma.assign([10.0, 0.01])
    normalization.beta.assign([1.0, 1.0])
    # the boundary lies kappa = .1 beyond (1, 1) along the first output
    model = keras.Model(inputs, against_zero(2, [1.0, 0.0], -1.1)(hidden))
    x = np.zeros((1, 2))
    printed_bound, certified = both(model, x)
    assert printed_bound == pytest.approx(7.07, abs=5e-3)
    assert changes_class(model, x, [[0.0101, 0]])
    assert all(bound <= 0.01 for bound in certified)
    assert certified[1] == pytest.approx(0.01, rel=1e-3)


def test_table_4_1_second_derivative_of_tanh():
    v, x, kappa = 0.56136, 2.14998, 0.78590
    printed_bound = printed.mlp(
        np.array([kappa]),
        np.array([v * (1 - np.tanh(v * x) ** 2)]),
        printed.hessian_bound([np.array([[v]])], ["tanh"]),
        1,
    )[0]
    assert printed_bound == pytest.approx(2.465, abs=2e-3)
    boundary = np.tanh(v * x) - kappa
    distance = x - np.arctanh(boundary) / v
    assert distance == pytest.approx(2.061, abs=1e-3)

    inputs = keras.Input((1,))
    unit = layers.Dense(1, activation="tanh")
    hidden = unit(inputs)
    unit.kernel.assign([[v]])
    model = keras.Model(inputs, against_zero(1, 1.0, -boundary)(hidden))
    one_batch, certified = both(model, [[x]])
    assert one_batch == pytest.approx(2.465, abs=2e-3)
    assert changes_class(model, [[x]], [[-distance * 1.001]])
    assert all(bound <= distance for bound in certified)
    # with the true constant, 4 / (3 sqrt 3), Theorem 4.2 holds
    curve = np.linspace(-3, 3, 100_001)
    value = np.tanh(curve)
    largest = np.abs(2 * value * (1 - value**2)).max()
    assert largest == pytest.approx(4 / (3 * np.sqrt(3)), rel=1e-6)
    assert printed.DERIVATIVES["tanh"][1] == pytest.approx(largest / 2, abs=1e-3)
    right = printed.mlp(
        np.array([kappa]), np.array([v * (1 - np.tanh(v * x) ** 2)]), largest * v * v, 1
    )
    assert right[0] <= distance


def test_relu_with_a_second_derivative_of_one():
    inputs = keras.Input((1,))
    unit = layers.Dense(1, activation="relu", kernel_initializer="ones")
    hidden = unit(inputs)
    unit.bias.assign([-1.0])
    model = keras.Model(inputs, against_zero(1, 1.0, -0.5)(hidden))
    printed_bound, certified = both(model, [[0.999]])
    assert printed_bound == pytest.approx(1.0, rel=1e-5)
    assert changes_class(model, [[0.999]], [[0.5012]])
    assert all(bound <= 0.501 for bound in certified)


def test_theorem_5_9_has_the_premise_of_theorem_5_6():
    """A channel turns while the norm hardly grows; this reading of the rule holds all the same."""
    layer = tfrobust.layers.LocalResponseNormalization(bias=0.25, beta=0.75, alpha=1e-4)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, against_zero(2, [0.0, 1.0], -0.1)(layer(inputs)))
    x = np.array([[5.0, 0.0]])
    printed_bound, certified = both(model, x)
    slope = float(layer(tf.constant([[5.0, 1e-3]]))[0, 1]) / 1e-3
    assert changes_class(model, x, [[0.0, 0.1 / slope * 1.001]])
    assert all(bound <= 0.1 / slope for bound in certified)
    # the printed rule may say less, never more than its own premise
    assert printed_bound <= 0.25**0.75 * 0.1 + 1e-6


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kind", ["max", "average", 1.0, 2.0, 4.0])
def test_eq_5_4_forgets_the_channels_but_holds(kind, strides):
    """No input lies in more than t^2 windows, whatever the channels are and windows overlap or not.

    Where it lies in all of them max pooling needs all that the rule says.
    """
    pool = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}.get(kind)
    pool = (
        tfrobust.layers.LpPooling2D(3, strides, p=kind)
        if pool is None
        else pool(3, strides=strides)
    )
    rng = np.random.default_rng(0)
    x, change = rng.normal(size=(2, 200, 5 + strides, 5 + strides, 5)).astype(np.float32)
    # every other example: one place, where the most windows meet
    x[1::2] = 0
    at_place = np.abs(change[1::2, 2, 2])
    change[1::2] = 0
    change[1::2, 2, 2] = at_place
    before, after = np.asarray(pool(x)), np.asarray(pool(x + change))
    kappa = np.linalg.norm((after - before).reshape(200, -1), axis=1)
    bound = printed.pooling(kappa, before.shape[1], 3, kind)
    length = np.linalg.norm(change.reshape(200, -1), axis=1)
    assert (bound <= length * (1 + 1e-5)).all()
    if kind == "max" and strides == 1:
        assert before.shape[1] == 4  # of 16 windows the place (2, 2) lies in 9
        assert (length / bound).min() == pytest.approx(4 / 3, rel=1e-5)


def test_the_printed_rules_warn():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.warns(UserWarning, match=r"printed rules can be violated.*certified") as caught:
        robustness(model, np.ones((1, 3), np.float32), rules="thesis")
    assert "\n" not in str(caught[0].message)
