"""The sketch against the exact search, closed forms in float64, and the chi^2 law it rests on."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import piecewise_linear_net, randomise
from scipy import stats

from tfrobust.alignment import decompose, measure
from tfrobust.alignment.sketch import gradient_gaps, interval, roots_of_sums
from tfrobust.classifier import Classifier, jacobian
from tfrobust.training import computing_in

layers = keras.layers


def linear_model(weights, bias):
    inputs, classes = weights.shape
    dense = layers.Dense(classes)
    model = keras.Sequential([keras.Input((inputs,)), dense])
    dense.set_weights([weights, bias])
    return model


def closed_form(weights, bias, x):
    """i*, all ratios of eq. (9) and all gaps of a linear model, in float64."""
    weights, bias, x = (np.asarray(each, float) for each in (weights, bias, x))
    scores = x @ weights + bias
    own = scores.argmax(axis=1)
    gaps = np.linalg.norm(weights.T[own][:, None] - weights.T, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (scores.max(axis=1, keepdims=True) - scores) / gaps
    ratios[np.arange(len(x)), own] = np.inf
    return own, ratios, gaps


def residual_net(classes, blocks=1):
    """Skip connections, batch normalisation and max pooling."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for _ in range(blocks):
        branch = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
        branch = layers.Conv2D(8, 3, padding="same")(layers.ReLU()(branch))
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(branch)]))
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    return keras.Model(inputs, layers.Dense(classes)(x))


def separable_net(classes):
    """Depthwise convolutions and bounded ReLUs as in MobileNet, preprocessing inside."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1.5, offset=-0.2)(inputs)
    for filters, strides in ((12, 2), (16, 1), (24, 2)):
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(classes)(layers.Flatten()(x)))


def smooth_net(classes):
    """Outside Theorem 1's class, with a concatenation and softmax inside the model."""
    inputs = keras.Input((16, 16, 3))
    x = layers.AveragePooling2D(2)(inputs)
    wide = layers.Conv2D(6, 3, activation="tanh")(x)
    wide = layers.BatchNormalization()(layers.Conv2D(6, 3, activation="softplus")(wide))
    x = layers.Concatenate()([layers.Flatten()(wide), layers.Flatten()(x)])
    return keras.Model(inputs, layers.Softmax()(layers.Dense(classes)(x)))


def images_for(model, seed, count):
    randomise(model, seed, scale=0.3)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *model.input_shape[1:]))
    colours, contrasts = rng.normal(size=(count, 1, 1, 3)), rng.uniform(0.3, 3, (count, 1, 1, 1))
    return (contrasts * (x + colours)).astype("float32")


@pytest.mark.filterwarnings("ignore:the homogeneous decomposition")
@pytest.mark.parametrize(
    ("build", "classes", "count"),
    [
        pytest.param(partial(residual_net, blocks=2), 300, 30, marks=pytest.mark.slow),
        pytest.param(separable_net, 500, 20, marks=pytest.mark.slow),
        pytest.param(smooth_net, 100, 70, marks=pytest.mark.slow),
        (separable_net, 100, 10),
    ],
)
def test_the_sketch_finds_what_the_exact_search_finds(build, classes, count):
    model = build(classes)
    x = images_for(model, classes, count)
    exact, sketch = measure(model, x), measure(model, x, search="sketch")
    np.testing.assert_array_equal(sketch.runner_up, exact.runner_up)
    np.testing.assert_allclose(sketch.linearized_robustness, exact.linearized_robustness, rtol=1e-4)
    assert len(np.unique(exact.runner_up)) > 5
    second = np.argsort(decompose(model, x).logits, axis=1)[:, -2]
    assert (exact.runner_up != second).any()  # not just the second largest logit
    frame = exact.to_frame()
    for name in set(frame) - {"exact_gradients"}:
        np.testing.assert_allclose(
            getattr(sketch, name), frame[name], rtol=2e-3, atol=1e-4, err_msg=name
        )
    scale = np.abs(exact.bias).max()
    np.testing.assert_allclose(sketch.bias, exact.bias, rtol=1e-4, atol=1e-5 * scale)
    assert (exact.exact_gradients == classes).all()
    assert sketch.exact_gradients.min() >= 2
    assert sketch.exact_gradients.mean() < classes / 8
    assert (exact.failure_probability, sketch.failure_probability) == (0, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_few_classes(seed):
    model, x = piecewise_linear_net(seed)
    exact, sketch = measure(model, x), measure(model, x, search="sketch", directions=16)
    np.testing.assert_array_equal(sketch.runner_up, exact.runner_up)
    np.testing.assert_allclose(sketch.linearized_robustness, exact.linearized_robustness, rtol=1e-4)


def test_linear_models_in_closed_form(rng):
    weights = rng.normal(size=(20, 500)) * rng.uniform(0.5, 3, 500)
    bias, x = rng.normal(size=500), rng.normal(size=(60, 20)).astype("float32")
    own, ratios, _ = closed_form(weights, bias, x)
    result = measure(linear_model(weights, bias), x, search="sketch")
    np.testing.assert_array_equal(result.predicted, own)
    np.testing.assert_array_equal(result.runner_up, ratios.argmin(axis=1))
    np.testing.assert_allclose(
        result.linearized_robustness, ratios.min(axis=1), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(result.bias, np.tile(bias, (60, 1)), atol=1e-4)
    assert result.exact_gradients.mean() < 40


def many_sums(model, x, directions, seeds):
    """S_j for many seeds, (seeds, batch, classes), and the squared gaps D_j."""
    gradients = jacobian(model, x).reshape(len(x), -1, x[0].size).astype(float)
    own = np.asarray(model(x)).argmax(axis=1).astype("int32")
    gaps = gradients[np.arange(len(x)), own][:, None] - gradients
    sums = [
        roots_of_sums(Classifier.of(model), directions=directions, seed=seed)(
            tf.constant(x), tf.constant(own)
        )[0].numpy()
        for seed in range(seeds)
    ]
    return np.stack(sums).astype(float) ** 2, (gaps**2).sum(axis=2), own


@pytest.mark.parametrize("directions", [1, 7])
def test_the_sums_follow_the_chi_squared_law(directions):
    model, x = piecewise_linear_net(3)
    sums, squares, own = many_sums(model, x[:2], directions, 500)
    for row in range(2):
        for j in set(range(squares.shape[1])) - {own[row]}:
            quotients = sums[:, row, j] / squares[row, j]
            assert stats.kstest(quotients, stats.chi2(directions).cdf).pvalue > 1e-3
            wrong = stats.kstest(quotients, stats.chi2(directions + 2).cdf).pvalue
            assert wrong < 1e-6  # so much the test can see
    assert (sums[:, np.arange(2), own] == 0).all()


def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(1)
    model = linear_model(rng.normal(size=(9, 4)), np.zeros(4))
    x = rng.normal(size=(1, 9)).astype("float32")
    own, _, gaps = closed_form(model.get_weights()[0], np.zeros(4), x)
    others = np.arange(4) != own[0]
    missed, together = [], []
    for seed in range(400):
        found = gradient_gaps(model, x, directions=5, confidence=0.4, seed=seed)
        outside = (gaps < found.lower) | (gaps > found.upper)
        missed.append(outside[0, others])
        together.append(outside.any())
        assert found.estimate[0, own[0]] == found.upper[0, own[0]] == 0
    # three intervals share a failure probability of .6
    assert np.mean(missed, axis=0) == pytest.approx([0.2] * 3, abs=4 * np.sqrt(0.2 * 0.8 / 400))
    assert 0.3 < np.mean(together) < 0.6 + 3 * np.sqrt(0.6 * 0.4 / 400)


def test_rounding_stays_within_its_bound(rng):
    """Rows that are alike but for a millionth: differences of products hold rounding, and more."""
    common, apart = rng.normal(size=(50, 1)), rng.normal(size=(50, 20))
    kernel = (1e3 * common + 1e-3 * apart).astype(np.float32)
    model = keras.Sequential([keras.Input((50,)), layers.Dense(20, use_bias=False)])
    model.set_weights([kernel])
    x = rng.normal(size=(3, 50)).astype(np.float32)
    predicted = np.zeros(3, np.int32)
    run = roots_of_sums(Classifier.of(model), directions=16, seed=4)
    roots, errors, _ = (np.asarray(each, float) for each in run(x, predicted))
    directions = [tf.random.stateless_normal([50], [4, k], alg="philox") for k in range(16)]
    pushed = np.asarray(directions, float) @ kernel.astype(float)
    exact = np.sqrt(((pushed[:, :1] - pushed) ** 2).sum(axis=0))
    off = np.abs(roots - exact)
    assert (off <= errors).all()
    assert (off[:, 1:] > 1e-6 * exact[1:]).all()  # there is rounding to be bounded


def test_gaps_of_a_network():
    model = residual_net(40, blocks=2)
    x = images_for(model, 1, 8)
    gradients = jacobian(model, x).reshape(8, 40, -1)
    found = gradient_gaps(model, x, directions=200)
    gaps = np.linalg.norm(gradients[np.arange(8), found.predicted][:, None] - gradients, axis=2)
    assert ((found.lower <= gaps) & (gaps <= found.upper)).all()
    keep = gaps > 0
    assert keep.sum() == 8 * 39
    errors = found.estimate[keep] / gaps[keep] - 1
    assert 0.03 < errors.std() < 0.07  # 1 / sqrt(400)
    assert (found.upper[keep] / found.lower[keep]).max() < 1.7
    pieces = gradient_gaps(model, x[::-1], directions=200, batch_size=3)
    np.testing.assert_allclose(pieces.estimate[::-1], found.estimate, rtol=1e-4)
    other = gradient_gaps(model, x, directions=200, seed=1)
    assert np.abs(other.estimate[keep] / found.estimate[keep] - 1).max() > 0.05


def near_ties(classes, spread, seed=0):
    """At x = 0 every class's ratio is 1 + spread, but one's is 1."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(40, classes)) * rng.uniform(0.5, 2, classes)
    nearest = classes // 3
    weights[:, 0] = 0
    ratios = np.full(classes, 1 + spread)
    ratios[nearest] = 1
    bias = -ratios * np.linalg.norm(weights, axis=0)
    return linear_model(weights, bias), np.zeros((1, 40), "float32"), nearest


def test_failures_are_as_rare_as_said_and_no_rarer():
    """With many classes just behind the nearest, its own bound's failure is the answer's."""
    model, x, nearest = near_ties(60, 0.01)
    delta, runs = 0.2, 200
    wrong = exact = 0
    for seed in range(runs):
        result = measure(
            model, x, search="sketch", directions=3, failure_probability=delta, seed=seed
        )
        wrong += int(result.runner_up[0] != nearest)
        exact += int(result.exact_gradients[0])
        # a wrong answer is still a class's exact ratio
        expected = 1 if result.runner_up[0] == nearest else 1.01
        assert result.linearized_robustness[0] == pytest.approx(expected, rel=1e-5)
    assert stats.binomtest(wrong, runs, delta, alternative="greater").pvalue > 1e-3
    assert wrong > 0.5 * delta * runs  # what it claims is not idle
    assert exact < 60 * runs


def test_failures_on_random_inputs(rng):
    weights, bias = rng.normal(size=(10, 200)), np.zeros(200)
    x = rng.normal(size=(40, 10)).astype("float32")
    model = linear_model(weights, bias)
    expected = closed_form(weights, bias, x)[1].argmin(axis=1)
    wrong = []
    for seed in range(40):
        result = measure(
            model, x, search="sketch", directions=2, failure_probability=0.2, seed=seed
        )
        wrong.append((result.runner_up != expected).mean())
    assert 0 < np.mean(wrong) < 0.2


@pytest.mark.parametrize(
    ("directions", "failure_probability"), [(1, 1e-300), (2, 1e-300), (1, 1e-12)]
)
def test_without_information_every_gradient_is_computed(rng, directions, failure_probability):
    weights, bias = rng.normal(size=(6, 50)), rng.normal(size=50)
    x = rng.normal(size=(10, 6)).astype("float32")
    result = measure(
        linear_model(weights, bias),
        x,
        search="sketch",
        directions=directions,
        failure_probability=failure_probability,
    )
    assert (result.exact_gradients == 50).all()
    assert (result.runner_up == closed_form(weights, bias, x)[1].argmin(axis=1)).all()


def test_neither_batch_size_nor_place_matters():
    model = residual_net(60)
    x = images_for(model, 5, 10)
    whole = measure(model, x, search="sketch", directions=8)
    pieces = measure(model, x[::-1], search="sketch", directions=8, batch_size=3)
    for name in ("runner_up", "exact_gradients"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name)[::-1])
    for name in ("linearized_robustness", "theorem2", "bias"):
        np.testing.assert_allclose(
            getattr(whole, name), getattr(pieces, name)[::-1], rtol=1e-3, atol=1e-4
        )
    other = measure(model, x, search="sketch", directions=8, seed=1)
    np.testing.assert_array_equal(whole.runner_up, other.runner_up)
    assert (whole.exact_gradients != other.exact_gradients).any()


def test_many_near_ties_take_many_gradients():
    model, x, nearest = near_ties(200, 1e-3)
    result = measure(model, x, search="sketch")
    assert result.runner_up[0] == nearest
    assert result.linearized_robustness[0] == pytest.approx(1, rel=1e-5)
    assert result.exact_gradients[0] == 200
    apart, x, nearest = near_ties(200, 2.0)
    assert measure(apart, x, search="sketch").exact_gradients[0] == 2


def duplicates_of_the_predicted(rng):
    """D_j = 0 for half of the classes: their boundary is nowhere."""
    weights, bias = rng.normal(size=(8, 60)), rng.normal(size=60)
    weights[:, 30:] = weights[:, [0]]
    bias[0], bias[30:] = 20, 20 - rng.uniform(0.001, 1, 30)
    return weights, bias


def duplicates_of_the_runner_up(rng):
    """Of equal classes the first is named."""
    weights, bias = rng.normal(size=(8, 30)), rng.normal(size=30)
    return np.hstack([weights, weights[:, ::-1]]), np.hstack([bias, bias[::-1]])


def one_huge_gap(rng):
    weights, bias = rng.normal(size=(8, 60)), rng.normal(size=60)
    weights[:, 17] *= 1e4
    bias[17] = -2e5
    return weights, bias


def tiny_gaps(rng):
    """Gradients that differ in their last digits, where the sums are mostly rounding."""
    weights = 100 * np.ones((8, 60)) + 1e-4 * rng.normal(size=(8, 60))
    return weights, np.concatenate([[0], -rng.uniform(1, 2, 59)])


@pytest.mark.parametrize(
    "build",
    [
        duplicates_of_the_predicted,
        duplicates_of_the_runner_up,
        pytest.param(one_huge_gap, marks=pytest.mark.slow),
        tiny_gaps,
    ],
)
def test_awkward_classes(build, rng):
    weights, bias = (each.astype("float32") for each in build(rng))
    x = rng.normal(size=(25, 8)).astype("float32")
    model = linear_model(weights, bias)
    exact, sketch = measure(model, x), measure(model, x, search="sketch")
    np.testing.assert_array_equal(sketch.runner_up, exact.runner_up)
    np.testing.assert_allclose(sketch.linearized_robustness, exact.linearized_robustness, rtol=1e-4)
    assert sketch.exact_gradients.min() >= 2


def test_equal_logits_are_on_the_boundary(rng):
    weights = np.zeros((4, 30), "float32")
    weights[:, 20:] = -np.abs(rng.normal(size=(4, 10)))
    bias = np.full(30, 3, "float32")
    x = np.abs(rng.normal(size=(5, 4))).astype("float32")
    exact = measure(linear_model(weights, bias), x)
    sketch = measure(linear_model(weights, bias), x, search="sketch")
    assert (sketch.linearized_robustness == 0).all()
    np.testing.assert_array_equal(sketch.runner_up, exact.runner_up)
    assert (sketch.exact_gradients == 2).all()
    assert sketch.undefined == exact.undefined


def test_ties_with_gradients(rng):
    weights, bias = rng.normal(size=(4, 30)), np.zeros(30)
    x = np.zeros((2, 4), "float32")
    result = measure(linear_model(weights, bias), x, search="sketch")
    assert (result.linearized_robustness == 0).all()
    assert (result.predicted == 0).all()
    assert (result.runner_up == 1).all()
    gap = np.linalg.norm(weights[:, 0] - weights[:, 1])
    np.testing.assert_allclose(result.binarized_gradient_norm, gap, rtol=1e-5)


def test_vanishing_gradients():
    """ReLUs that are off for negative inputs."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(9, "relu"), layers.Dense(40)])
    first, last = np.abs(rng.normal(size=(3, 9))), rng.normal(size=(9, 40))
    model.set_weights([first, np.zeros(9), last, rng.normal(size=40)])
    x = np.array([[-1.0, -1, -1], [1, 2, 1], [-2, -1, -3], [2, 1, 1]], "float32")
    exact, sketch = measure(model, x), measure(model, x, search="sketch")
    np.testing.assert_array_equal(np.isinf(sketch.linearized_robustness), [1, 0, 1, 0])
    np.testing.assert_array_equal(sketch.runner_up, exact.runner_up)
    np.testing.assert_allclose(sketch.linearized_robustness, exact.linearized_robustness, rtol=1e-4)
    assert sketch.undefined == exact.undefined == 2
    assert (sketch.exact_gradients[[0, 2]] == 2).all()


@pytest.mark.slow
def test_bias_is_the_complement_of_the_homogeneous_part():
    model = residual_net(40)
    x = images_for(model, 6, 4)
    result, parts = measure(model, x, search="sketch"), decompose(model, x)
    scale = np.abs(parts.logits).max()
    np.testing.assert_allclose(
        result.bias, parts.logits - parts.homogeneous, rtol=1e-4, atol=1e-5 * scale
    )
    np.testing.assert_allclose(result.bias, parts.bias, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.filterwarnings("ignore:the homogeneous decomposition")
def test_models_that_compute_in_bfloat16():
    with computing_in("mixed_bfloat16"):
        model = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3, strides=2)])
        for layer in (layers.BatchNormalization(), layers.ReLU(), layers.Flatten()):
            model.add(layer)
        model.add(layers.Dense(30))
    x = images_for(model, 2, 12)
    exact, sketch = measure(model, x), measure(model, x, search="sketch")
    np.testing.assert_array_equal(sketch.predicted, exact.predicted)
    np.testing.assert_allclose(
        sketch.linearized_robustness, exact.linearized_robustness, rtol=0.03, atol=1e-6
    )
    assert sketch.exact_gradients.mean() < 20


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30])
def test_measures_do_not_depend_on_the_size_of_logits(scale, rng):
    """Squares of such gradients under- or overflow in single precision."""
    weights, bias = rng.normal(size=(9, 40)).astype(np.float32), rng.normal(size=40)
    x = rng.normal(size=(30, 9)).astype(np.float32)
    plain = linear_model(weights, bias)
    scaled = linear_model(np.float32(scale) * weights, np.float32(scale) * bias)
    _, _, gaps = closed_form(weights, bias, x)
    for search in ("exact", "sketch"):
        expected, found = measure(plain, x, search=search), measure(scaled, x, search=search)
        np.testing.assert_array_equal(found.runner_up, expected.runner_up)
        for name in ("linearized_robustness", "alignment", "theorem2", "theorem3"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4)
    found = gradient_gaps(scaled, x, directions=50)
    assert ((found.lower <= scale * gaps) & (scale * gaps <= found.upper)).mean() > 0.99


@pytest.mark.parametrize(
    "backwards", [lambda g: tf.clip_by_norm(g, 1.0, axes=[1]), tf.stop_gradient]
)
def test_gradients_of_ones_own_are_searched_exactly(backwards, rng):
    """The sketch differentiates gradients by what comes back, which these do not allow."""

    @tf.custom_gradient
    def identity(z):
        return z, backwards

    hidden = layers.Dense(16, activation="relu")
    model = keras.Sequential(
        [keras.Input((10,)), hidden, layers.Lambda(identity), layers.Dense(50)]
    )
    x = rng.normal(size=(20, 10)).astype(np.float32)
    with pytest.warns(UserWarning, match="searched exactly instead of with the sketch"):
        found = measure(model, x, search="sketch")
    exact = measure(model, x)
    np.testing.assert_array_equal(found.runner_up, exact.runner_up)
    np.testing.assert_array_equal(found.linearized_robustness, exact.linearized_robustness)
    assert found.failure_probability == 0 and (found.exact_gradients == 50).all()
    with pytest.raises(ValueError, match="no distances can be estimated"):
        gradient_gaps(model, x)


def test_bounds_at_their_limits():
    """A quantile of zero bounds nothing from above; rounding widens both sides."""
    lower, upper = interval(np.array([2.0]), np.array([0.0]), 1, 1e-320)
    assert np.isinf(upper[0])
    assert 0 <= lower[0] < 2
    exact = interval(np.array([2.0]), np.array([0.0]), 10, 0.01)
    rounded = interval(np.array([2.0]), np.array([0.1]), 10, 0.01)
    assert rounded[0] < exact[0] < exact[1] < rounded[1]
    assert exact[1][0] == pytest.approx(2 / np.sqrt(stats.chi2.ppf(0.01, 10)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"directions": 0}, "directions must be at least 1, got 0"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ({"confidence": -0.1}, "confidence must lie"),
    ],
)
def test_bad_settings(how, message):
    with pytest.raises(ValueError, match=message):
        gradient_gaps(linear_model(np.eye(4), np.zeros(4)), np.ones((2, 4)), **how)


@pytest.mark.slow
def test_resnet50():
    """1,000 classes, activations normalised, then every statistic and scale at random."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.applications.ResNet50(
        weights=None, classifier_activation=None, input_shape=(64, 64, 3)
    )
    x = rng.normal(size=(6, 64, 64, 3)).astype("float32")
    normalisations = [
        layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)
    ]
    for layer in normalisations:
        layer.momentum = 0.0
    model(rng.normal(size=(16, 64, 64, 3)), training=True)
    for layer in normalisations:
        shape, spread = layer.moving_mean.shape, np.sqrt(layer.moving_variance)
        layer.moving_mean.assign_add(0.2 * rng.normal(size=shape) * spread)
        layer.moving_variance.assign(layer.moving_variance * rng.uniform(0.5, 2, shape))
        layer.gamma.assign(rng.uniform(0.5, 1.5, shape))
        layer.beta.assign(0.2 * rng.normal(size=shape))
    exact = measure(model, x)
    sketch = measure(model, x, search="sketch")
    np.testing.assert_array_equal(sketch.runner_up, exact.runner_up)
    np.testing.assert_allclose(sketch.linearized_robustness, exact.linearized_robustness, rtol=1e-4)
    scale = np.abs(exact.bias).max()
    np.testing.assert_allclose(sketch.bias, exact.bias, rtol=1e-3, atol=1e-4 * scale)
    assert sketch.exact_gradients.mean() < 50
