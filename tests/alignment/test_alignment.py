"""Alignment and its bounds against closed forms, brute force and float64 NumPy."""

import functools
import importlib
import warnings

import keras
import numpy as np
import pytest
from helpers.nets import next_piecewise_linear_net, piecewise_linear_net, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.alignment import Alignment, decompose, measure
from tfrobust.classifier import jacobian, predict_logits
from tfrobust.saliency import input_gradient
from tfrobust.training import computing_in

layers = keras.layers


def linear_model(weights, bias=None):
    inputs, classes = weights.shape
    dense = layers.Dense(classes, use_bias=bias is not None)
    model = keras.Sequential([keras.Input((inputs,)), dense])
    dense.set_weights([weights] if bias is None else [weights, bias])
    return model


def brute_force_distance(weights, bias, x, angles=20_000):
    """Smallest distance to another class over a fan of rays in the plane, each solved exactly."""
    scores = x @ weights + bias
    own = scores.argmax()
    turn = np.linspace(0, 2 * np.pi, angles, endpoint=False)
    rays = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    speeds = rays @ weights
    closing = speeds - speeds[:, [own]]
    with np.errstate(divide="ignore", invalid="ignore"):
        times = (scores[own] - scores) / closing
    times[closing <= 0] = np.inf
    return times.min()


@pytest.mark.parametrize("seed", range(5))
def test_linear_models_without_bias_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(2, 4)).astype("float32")
    x = rng.normal(size=(20, 2)).astype("float32")
    result = measure(linear_model(weights), x)
    distance = [brute_force_distance(weights, np.zeros(4), row) for row in x]
    np.testing.assert_allclose(result.linearized_robustness, distance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.binarized_alignment, distance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.bias_margin, 0, atol=1e-5)


def test_linear_models_with_bias_by_brute_force(rng):
    weights = rng.normal(size=(2, 5)).astype("float32")
    bias = rng.normal(size=5).astype("float32")
    x = rng.normal(size=(20, 2)).astype("float32")
    result = measure(linear_model(weights, bias), x)
    distance = [brute_force_distance(weights, bias, row) for row in x]
    np.testing.assert_allclose(result.linearized_robustness, distance, rtol=1e-4, atol=1e-6)
    rows = np.arange(len(x))
    expected = bias[result.predicted] - bias[result.runner_up]
    np.testing.assert_allclose(result.bias_margin[rows], expected, atol=1e-4)


def test_two_classes_of_opposite_scores_have_one_alignment(rng):
    score = rng.normal(size=(6, 1)).astype("float32")
    x = rng.normal(size=(30, 6)).astype("float32")
    result = measure(linear_model(np.hstack([score, -score])), x)
    expected = np.abs(x @ score[:, 0]) / np.linalg.norm(score)
    np.testing.assert_allclose(result.alignment, expected, rtol=1e-5)
    np.testing.assert_allclose(result.binarized_alignment, expected, rtol=1e-5)
    np.testing.assert_allclose(result.gradient_gap, 0, atol=1e-5)


@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_without_biases_linearized_robustness_is_binarized_alignment(seed):
    model, x = next_piecewise_linear_net(seed, bias=False)
    result = measure(model, x)
    keep = np.isfinite(result.linearized_robustness)
    np.testing.assert_allclose(
        result.linearized_robustness[keep], result.binarized_alignment[keep], rtol=1e-3, atol=1e-6
    )


def bounds_hold(result):
    rho = result.linearized_robustness.astype(float)
    for name in ("theorem2_binarized", "theorem2", "theorem3"):
        bound = getattr(result, name).astype(float)
        keep = np.isfinite(rho) & np.isfinite(bound)
        scale = np.maximum(bound[keep], result.input_norm[keep])
        assert (rho[keep] <= bound[keep] + 1e-4 * scale).all(), name
    keep = np.isfinite(result.theorem2)
    slack = 1e-4 * np.maximum(result.theorem2, result.input_norm)
    assert (result.theorem2_binarized <= result.theorem2 + slack)[keep].all()


@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_theorems_2_and_3_on_random_nets(seed):
    model, x = next_piecewise_linear_net(seed)
    bounds_hold(measure(model, x))


@functools.cache
def smooth_mlp(activation):
    """Compiled once for all its weights."""
    hidden = layers.Dense(12, activation=activation)
    return keras.Sequential([keras.Input((6,)), hidden, layers.Dense(4)])


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), activation=st.sampled_from(["tanh", "softplus", "elu", "gelu"]))
def test_theorems_2_and_3_do_not_need_theorem_1(seed, activation):
    model = randomise(smooth_mlp(activation), seed)
    x = np.random.default_rng(seed).normal(size=(15, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bounds_hold(measure(model, x))


def numpy_measures(model, x):
    """Every field again, in float64, from the library's Jacobian and logits alone."""
    gradients = jacobian(model, x).reshape(len(x), -1, x[0].size).astype(float)
    values = predict_logits(model, x).astype(float)
    flat = x.reshape(len(x), -1).astype(float)
    errors = decompose(model, x).relative_error
    rows = []
    for own_x, z, g, error in zip(flat, values, gradients, errors, strict=True):
        own = z.argmax()
        ratio = {
            j: (z[own] - z[j]) / np.linalg.norm(g[own] - g[j]) for j in range(len(z)) if j != own
        }
        other = min(ratio, key=ratio.get)
        gap = g[own] - g[other]
        unit_gap, unit_own = gap / np.linalg.norm(gap), g[own] / np.linalg.norm(g[own])
        beta = z[own] - z[other] - own_x @ gap
        alpha = abs(own_x @ unit_own)
        binarized = abs(own_x @ unit_gap)
        distance = abs(beta) / np.linalg.norm(gap)
        apart = np.linalg.norm(unit_gap - unit_own)
        rows.append(
            {
                "predicted": own,
                "runner_up": other,
                "margin": z[own] - z[other],
                "linearized_robustness": ratio[other],
                "alignment": alpha,
                "binarized_alignment": binarized,
                "homogeneous_margin": own_x @ gap,
                "bias_margin": beta,
                "gradient_norm": np.linalg.norm(g[own]),
                "binarized_gradient_norm": np.linalg.norm(gap),
                "gradient_gap": apart,
                "input_norm": np.linalg.norm(own_x),
                "theorem2_binarized": binarized + distance,
                "theorem2": alpha + np.linalg.norm(own_x) * apart + distance,
                "exact_gradients": len(z),
                "shifted": own_x + beta * gap / np.linalg.norm(gap) ** 2,
                "unit_gap": unit_gap,
                "decomposition_error": error,
            }
        )
    shifted = np.array([row.pop("shifted") for row in rows]).astype("float32")
    own = np.array([row["predicted"] for row in rows])
    images = shifted.reshape(x.shape)
    slopes = input_gradient(model, images, own).reshape(len(x), -1).astype(float)
    classes = predict_logits(model, images).argmax(axis=1)
    for row, place, slope, now in zip(rows, shifted.astype(float), slopes, classes, strict=True):
        direction = slope / np.linalg.norm(slope)
        row["shifted_alignment"] = abs(place @ direction)
        row["shifted_gradient_gap"] = np.linalg.norm(row.pop("unit_gap") - direction)
        row["shifted_input_norm"] = np.linalg.norm(place)
        row["theorem3"] = (
            row["shifted_alignment"] + row["shifted_input_norm"] * row["shifted_gradient_gap"]
        )
        row["same_class_at_shift"] = now == row["predicted"]
    return rows


def smooth_net(seed, classes=7):
    """Smooth, so that rounding of the shifted input cannot cross a kink."""
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(4, 3, activation="softplus"),
            layers.Flatten(),
            layers.Dense(classes),
        ]
    )
    randomise(model, seed)
    return model, np.random.default_rng(seed).normal(size=(12, 5, 5, 2)).astype("float32")


@pytest.mark.filterwarnings("ignore:the homogeneous decomposition")
def test_every_field_against_float64():
    model, x = smooth_net(3)
    frame = measure(model, x).to_frame()
    for (_, found), expected in zip(frame.iterrows(), numpy_measures(model, x), strict=True):
        assert set(found.index) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore:the homogeneous decomposition")
def test_chunks_of_classes_change_nothing(monkeypatch):
    together = measure(*smooth_net(5, classes=11)).to_frame()
    for module in ("measure", "runner_up"):
        monkeypatch.setattr(importlib.import_module(f"tfrobust.alignment.{module}"), "CHUNK", 4)
    chunked = measure(*smooth_net(5, classes=11)).to_frame()
    for name in together:
        np.testing.assert_allclose(together[name], chunked[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the homogeneous decomposition")
@pytest.mark.parametrize("classes", [7, 37])  # in one graph, in chunks
def test_bias_of_all_classes_and_what_the_exact_search_took(classes):
    model, x = smooth_net(2, classes=classes)
    result = measure(model, x)
    parts = decompose(model, x)
    expected = parts.logits - parts.homogeneous
    np.testing.assert_allclose(result.bias, expected, rtol=1e-4, atol=1e-5)
    rows = np.arange(len(x))
    margin = result.bias[rows, result.predicted] - result.bias[rows, result.runner_up]
    np.testing.assert_allclose(result.bias_margin, margin, rtol=1e-4, atol=1e-5)
    assert (result.exact_gradients == classes).all()
    assert result.failure_probability == 0


def test_tables_and_medians_leave_out_what_is_no_measure():
    model, x = piecewise_linear_net(1)
    result = measure(model, x)
    frame = result.to_frame()
    assert {"bias", "failure_probability"}.isdisjoint(frame)
    assert (frame["exact_gradients"] == result.bias.shape[1]).all()
    no_measures = {"bias", "exact_gradients", "failure_probability", "decomposition_error"}
    assert no_measures.isdisjoint(result.medians())
    again = Alignment.from_frame(frame.assign(file="an image"))
    np.testing.assert_array_equal(again.decomposition_error, result.decomposition_error)
    assert again.medians() == result.medians()
    assert again.bias is None
    older = Alignment.from_frame(frame.drop(columns=["exact_gradients", "decomposition_error"]))
    assert older.exact_gradients is older.decomposition_error is None
    assert "exact_gradients" not in older.to_frame()
    with pytest.raises(ValueError, match=r"it has no margin, theorem2$"):
        Alignment.from_frame(frame.drop(columns=["margin", "theorem2"]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"search": "random"}, 'search must be "exact" or "sketch", got \'random\''),
        ({"search": "sketch", "directions": 0}, "directions must be at least 1"),
        ({"search": "sketch", "failure_probability": 0.0}, "failure_probability must lie between"),
        ({"search": "sketch", "failure_probability": 1.0}, "failure_probability must lie between"),
    ],
)
def test_bad_searches(how, message):
    with pytest.raises(ValueError, match=message):
        measure(linear_model(np.eye(4, dtype="float32")), np.ones((2, 4)), **how)


def test_batch_size_changes_nothing():
    model, x = piecewise_linear_net(1)
    whole, pieces = measure(model, x, batch_size=64), measure(model, x, batch_size=3)
    for name in ("linearized_robustness", "alignment", "theorem3", "bias_margin"):
        np.testing.assert_allclose(getattr(whole, name), getattr(pieces, name), rtol=1e-4)


def test_the_runner_up_need_not_be_second():
    # class 1 is close in score but its gradient hardly differs; class 2's boundary is nearer
    weights = np.array([[1.0, 0.99, -8.0], [0.0, 0.0, 0.0]], "float32")
    bias = np.array([1.0, 0.9, 0.5], "float32")
    result = measure(linear_model(weights, bias), np.array([[0.1, 0.0]]))
    assert predict_logits(linear_model(weights, bias), [[0.1, 0.0]]).argsort()[0, -2] == 1
    assert result.runner_up[0] == 2


def dead_model():
    """ReLUs that are off for negative inputs: every gradient vanishes there."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="relu"), layers.Dense(3)]
    )
    rng = np.random.default_rng(0)
    first = np.abs(rng.normal(size=(3, 4)))
    model.set_weights([first, np.zeros(4), rng.normal(size=(4, 3)), np.array([0.5, 0.1, 0.2])])
    return model


def test_vanishing_gradients_are_counted_not_fatal():
    x = np.array([[-1.0, -1, -1], [1, 2, 1], [-2, -1, -3], [2, 1, 1]], "float32")
    result = measure(dead_model(), x)
    dead = np.array([True, False, True, False])
    assert np.isinf(result.linearized_robustness[dead]).all()
    assert np.isnan(result.alignment[dead]).all()
    assert np.isfinite(result.linearized_robustness[~dead]).all()
    assert result.runner_up[0] == 2  # by the smallest margin
    assert result.undefined == 2
    expected = np.median(result.linearized_robustness[~dead])
    assert result.medians()["linearized_robustness"] == pytest.approx(expected)


def test_medians_of_nothing_are_nan():
    result = measure(dead_model(), -np.ones((2, 3), "float32"))
    assert result.undefined == 2
    assert np.isnan(result.medians()["alignment"])


def test_a_tie_is_on_the_boundary():
    result = measure(linear_model(np.ones((2, 2), "float32")), np.array([[1.0, 2.0]]))
    assert result.margin[0] == 0
    assert result.linearized_robustness[0] == 0


def test_softmax_models_are_measured_at_their_logits():
    model, x = piecewise_linear_net(2)
    softmax = keras.Sequential([model, layers.Softmax()])
    plain, stripped = measure(model, x), measure(softmax, x)
    np.testing.assert_allclose(plain.linearized_robustness, stripped.linearized_robustness)


def test_outside_theorem_1_there_is_a_warning_with_the_size():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(9, activation="tanh")])
    model.add(layers.Dense(3))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(10, 4))
    with pytest.warns(UserWarning, match=r"not exact .* misses the logits by \d+\.\d%"):
        measure(model, x)


def test_inside_theorem_1_there_is_none():
    model, x = piecewise_linear_net(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, x)


def test_models_that_compute_in_bfloat16():
    results = []
    for policy in ("float32", "mixed_bfloat16"):
        with computing_in(policy):
            model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.ReLU()])
            model.add(layers.Flatten())
            model.add(layers.Dense(4))
        randomise(model, 0)
        results.append(measure(model, np.random.default_rng(0).normal(size=(20, 8, 8, 1))))
    full, half = results
    assert half.linearized_robustness.dtype == np.float32
    np.testing.assert_allclose(half.gradient_norm, full.gradient_norm, rtol=0.05)
    np.testing.assert_allclose(half.alignment, full.alignment, atol=0.05 * full.input_norm.max())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 7)), "the model takes"),
        (np.full((2, 4), np.nan), "NaN"),
        (np.zeros((0, 4)), "empty batch"),
    ],
)
def test_bad_inputs(x, message):
    with pytest.raises(ValueError, match=message):
        measure(linear_model(np.eye(4, dtype="float32")), x)
