"""The counterexamples to the printed rules, which break no certified bound; and what holds."""

import keras
import numpy as np
import pytest
from scipy.optimize import brentq

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
    assert printed_bound == pytest.approx(7.0710678, rel=1e-6)
    assert changes_class(model, x, [[0.0101, 0]])
    assert all(bound <= 0.01 for bound in certified)
    assert certified[1] == pytest.approx(0.01, rel=1e-3)
    # Lemma 5.4 takes for all components what (5.9) says of at least one: on its own premise, that
    # the output's norm grows by kappa, the theorem fails too
    grown = np.linalg.norm(normalization(np.float32([[0.0138, 0]]))) - np.sqrt(2)
    assert grown > 0.1
    y, psi = 1.0, (2 * 0.1 * np.sqrt(2) + 0.1**2) / 2
    smallest = min((np.sqrt(y**2 + psi) - y) / s for s in (10.0, 0.01))
    assert smallest == pytest.approx(0.00707, abs=1e-5)


def test_the_norm_of_the_output_need_not_grow():
    """Theorem 5.6 with the minimum that (5.9) gives is no bound either."""
    inputs = keras.Input((2,))
    normalization = layers.BatchNormalization(epsilon=0.0)
    hidden = normalization(inputs)
    normalization.gamma.assign([10.0, 0.01])
    normalization.beta.assign([0.0, 1.0])
    model = keras.Model(inputs, against_zero(2, [1.0, 0.0], -0.1)(hidden))
    printed_bound, certified = both(model, np.zeros((1, 2)))
    assert printed_bound == pytest.approx(5.1189802, rel=1e-6)
    psi = (2 * 0.1 * 1 + 0.1**2) / 2
    mended = min(np.sqrt(psi) / 10.0, (np.sqrt(1 + psi) - 1) / 0.01)
    assert mended == pytest.approx(0.0324, abs=1e-4)
    assert changes_class(model, np.zeros((1, 2)), [[0.0101, 0]])
    assert all(bound <= 0.01 for bound in certified)
    # moved along a circle, the output changes by more than kappa with the same norm
    turned = np.asarray(normalization(np.float32([[0.05, -13.4]])))
    assert np.linalg.norm(turned) == pytest.approx(1.0, abs=1e-3)
    assert np.linalg.norm(turned - [0, 1]) > 0.1


def test_batch_normalization_is_not_trivial_at_gamma_zero():
    """delta_j grows as gamma_j falls, where the text says that the bound becomes 0."""
    y, kappa = np.array([[1.0, 1.0]]), np.array([0.1])
    found = [
        printed.batch_normalization(kappa, y, np.array([1.0, g]))[0] for g in (1, 1e-2, 1e-4, 1e-6)
    ]
    assert (np.diff(found) > 0).all()
    assert found[-1] > 1e4


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
    assert printed.DERIVATIVES["tanh"][1] == pytest.approx(largest / 2, rel=1e-6)
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


def test_theorem_5_9_local_response_normalization():
    layer = tfrobust.layers.LocalResponseNormalization()
    inputs = keras.Input((2,))
    model = keras.Model(inputs, against_zero(2, [0.0, 1.0], -0.1)(layer(inputs)))
    x = np.array([[5.0, 0.0]])
    printed_bound, certified = both(model, x)
    assert printed_bound == pytest.approx(3.6470663, rel=1e-5)

    def response(first, second):
        return np.array([first, second]) * (2 + 1e-4 * (first**2 + second**2)) ** -0.75

    distance = brentq(lambda r: response(5, r)[1] - 0.1, 0, 1)
    assert distance == pytest.approx(0.16834, abs=1e-5)
    assert changes_class(model, x, [[0.0, distance * 1.001]])
    assert all(bound <= distance for bound in certified)
    # on its own premise too, by Lemma 5.8: the norm grows by kappa much sooner than printed
    start = np.linalg.norm(response(5, 0))
    grown = brentq(lambda r: np.linalg.norm(response(5 + r, 0)) - start - 0.1, 0, 1)
    assert grown == pytest.approx(0.1687, abs=1e-4)


def test_lemma_5_11_is_about_x_and_its_proof_forgets_second_derivatives():
    # one channel, k = alpha = 1: M at x = .01, and the largest second derivative anywhere
    largest = 0.01 * 0.75
    lemma = 4 * largest * (0.01**2 * 1.75 + 1) + 2 * largest
    assert lemma == pytest.approx(0.0450, abs=1e-4)
    x = np.linspace(-6, 6, 240_001)
    second = np.gradient(np.gradient(x * (1 + x**2) ** -0.75, x), x)
    assert np.abs(second).max() == pytest.approx(1.178, abs=2e-3)
    # of three channels the mixed derivative by the two others is not 0, as the proof has it
    a, b, c, k, alpha, beta = 1.0, 0.7, -0.4, 2.0, 0.5, 0.75

    def first(b, c):
        return a * (k + alpha * (a * a + b * b + c * c)) ** -beta

    h = 1e-4
    mixed = first(b + h, c + h) - first(b + h, c - h) - first(b - h, c + h) + first(b - h, c - h)
    base = k + alpha * (a * a + b * b + c * c)
    true = 4 * alpha**2 * beta * (beta + 1) * a * b * c * base ** (-beta - 2)
    assert mixed / (4 * h * h) == pytest.approx(true, rel=1e-3)
    assert abs(true) > 1e-3


def test_theorem_3_7_is_tight_by_another_number():
    """f_i(x) = x_i: the bound and the distance are |x_c' - x_c| / sqrt 2, not as the proof says."""
    bound = printed.last_layer(np.array([[1.0, 0.0]]), np.eye(2), np.zeros(2))[0]
    assert bound == pytest.approx(1 / np.sqrt(2))
    moved = np.array([1.0, 0.0]) + 1.001 * bound * np.array([-1, 1]) / np.sqrt(2)
    assert moved.argmax() == 1


def test_the_binary_form_behind_theorem_3_6():
    """w_1 - w_0 = w: half of what (2w.x + b) / ||2w|| would have in its place."""
    w, b, x = np.array([3.0, 4.0]), 2.0, np.array([1.0, 1.0])
    bound = printed.last_layer(x[None], np.stack([0 * w, w], axis=1), np.array([0, b]))[0]
    assert bound == pytest.approx(abs(w @ x + b) / np.linalg.norm(w))
    assert bound != pytest.approx(abs(2 * w @ x + b) / np.linalg.norm(2 * w))


def test_fgs_is_exact_for_linear_classifiers_in_the_maximum_norm_only():
    w, x = np.array([3.0, 1.0, 0.2]), np.array([1.0, 2.0, -1.0])
    epsilon = (w @ x) / np.abs(w).sum()
    assert w @ (x - epsilon * np.sign(w)) == pytest.approx(0, abs=1e-12)
    shortest = (w @ x) / np.linalg.norm(w)
    assert epsilon * np.sqrt(3) > 1.2 * shortest
    # and with three classes the sign of the loss's gradient is not even the nearest one's
    kernel = np.array([[0.0, 1.0, 0.2], [0.0, 0.1, 1.0]]).T
    bias = np.array([0.0, 0.5, 0.6])
    h = np.array([-1.0, -1.0])
    z = kernel @ h + bias
    assert z.argmax() == 0
    softmax = np.exp(z) / np.exp(z).sum()
    direction = np.sign(kernel.T @ (softmax - [1, 0, 0]))
    steps = np.linspace(0, 4, 40_001)
    classes = (kernel @ (h[:, None] + direction[:, None] * steps) + bias[:, None]).argmax(0)
    along = steps[(classes != 0).argmax()]
    nearest = min(-z[j] / np.abs(kernel[j]).sum() for j in (1, 2))
    assert along >= nearest


def test_lp_pooling_below_one_is_not_subadditive():
    def pool(x, p):
        return (np.abs(x) ** p).sum() ** (1 / p)

    x, r = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert pool(x + r, 0.5) == pytest.approx(4.0)
    assert pool(x, 0.5) + pool(r, 0.5) == pytest.approx(2.0)
    assert pool(x + r, 1.0) <= pool(x, 1.0) + pool(r, 1.0)


def test_algorithm_2_1_does_not_end():
    """With an adversarial beyond .3, u - l never becomes 0 in double precision."""
    low, high = 0.0, 1.0
    epsilon = high / 2
    for _ in range(2000):
        low, high = (epsilon, high) if epsilon < 0.3 else (low, epsilon)
        epsilon = low + (high - low) / 2
    assert high - low == pytest.approx(5.55e-17, rel=1e-2)


def test_theorem_a_1_needs_the_operator_norm_of_the_hessians():
    """f(x) = (sum x)^2 / 2: every second derivative is 1, the error up to d r^2 / 2."""
    r = 0.1 * np.ones(3)
    error = r.sum() ** 2 / 2
    assert error > 1 / 2 * 1 * (r @ r)  # M / 2 sqrt(m) ||r||^2, m = 1
    assert error == pytest.approx(3 / 2 * (r @ r))


def test_table_5_1_divides_by_1024():
    """CIFAR-NIN's mean epsilon, 5.783, by the pixels, not by 3 x 32 x 32 as the text says."""
    assert 5.783 * np.sqrt(3072) / 1024 == pytest.approx(0.3129927, rel=1e-3)
    assert 5.783 * np.sqrt(3072) / 3072 < 0.11


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
