"""`benchmark` against closed forms of linear models, and where nothing can be certified."""

import math
import re

import keras
import numpy as np
import pytest
from helpers.nets import randomise

import tfrobust
from tfrobust import Benchmark, benchmark
from tfrobust.errors import InputError

layers = keras.layers
COUNT, FEATURES, CLASSES = 60, 6, 4
WIDE = (-6.0, 6.0)
# Foolbox adds 1e-4 to a step of DeepFool, in units of the range's width
SLACK = 1.02e-4 * 12 + 3e-4


def linear(seed=0):
    """A linear classifier, inputs, and labels of which about a fifth are wrong."""
    rng = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
    randomise(model, seed)
    x = rng.normal(size=(COUNT, FEATURES)).astype("float32")
    labels = model.predict(x, verbose=0).argmax(1)
    wrong = rng.random(COUNT) < 0.2
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    return model, x, labels


def closed_form(model, x, labels, dual):
    """Distance of each example to the nearest other class: margin over the dual norm."""
    kernel, bias = (weight.astype(float) for weight in model.get_weights())
    logits = x.astype(float) @ kernel + bias
    distance = np.full((len(x), CLASSES), np.inf)
    for row, label in enumerate(labels):
        for other in set(range(CLASSES)) - {label}:
            norm = np.linalg.norm(kernel[:, label] - kernel[:, other], dual)
            distance[row, other] = (logits[row, label] - logits[row, other]) / norm
    return np.maximum(distance.min(axis=1), 0)  # 0: misclassified


@pytest.fixture(scope="module")
def linear_case():
    model, x, labels = linear()
    exact = closed_form(model, x, labels, 2)
    return benchmark(model, x, labels, epsilon=0.5, attacks=["deepfool"], value_range=WIDE), exact


def test_a_linear_model_in_closed_form(linear_case):
    result, exact = linear_case
    assert result.accuracy == np.mean(exact > 0) < 1
    # DeepFool ends 2 % and a little behind the boundary: no example may lie in between
    for epsilon in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
        assert not ((exact <= epsilon) & (1.02 * exact + SLACK > epsilon) & (exact > 0)).any()
        share = np.mean((exact > 0) & (exact > epsilon))
        assert result.robust_accuracy(epsilon) == share
        assert result.certified_accuracy(epsilon) == share
    assert result.robust_accuracy() == np.mean(exact > 0.5)
    right = exact > 0
    np.testing.assert_array_equal(result.correct, right)
    np.testing.assert_allclose(result.distance[right], 1.02 * exact[right], atol=SLACK)
    # less what is taken off for rounding
    np.testing.assert_allclose(result.certified_radius[right], exact[right], atol=2e-5)
    assert (result.certified_radius[right] <= exact[right] * (1 + 1e-6)).all()
    np.testing.assert_allclose(result.linearized_robustness[right], exact[right], rtol=1e-4)
    assert not result.distance[~right].any()


def test_the_summary_of_a_linear_model(linear_case):
    result, exact = linear_case
    right = exact > 0
    summary = result.summary()
    assert summary["median_linearized_robustness"] == pytest.approx(np.median(exact[right]), 1e-4)
    assert summary["median_certified_radius"] == pytest.approx(np.median(exact[right]), 1e-4)
    assert summary["median_distance"] == pytest.approx(1.02 * np.median(exact[right]), abs=SLACK)
    expected = {
        "examples": COUNT,
        "epsilon": 0.5,
        "norm": 2.0,
        "attacks": ["deepfool"],
        "accuracy": np.mean(right),
        "robust_accuracy": np.mean(exact > 0.5),
        "certified_accuracy": np.mean(exact > 0.5),
        "attack_success_rate": 1.0,
        "violations": 0,
        "uncertified": None,
    }
    assert {name: summary[name] for name in expected} == expected
    assert set(summary) - set(expected) == {
        f"median_{name}"
        for name in ("distance", "certified_radius", "alignment", "linearized_robustness")
    }


def test_alignment_of_a_linear_model():
    """|<x, w>| / ||w|| with the predicted class's weights."""
    model, x, labels = linear(1)
    result = benchmark(model, x, labels, epsilon=0.1, attacks=["deepfool"], value_range=WIDE)
    kernel = model.get_weights()[0][:, result.predicted].astype(float)
    expected = np.abs((x.T * kernel).sum(0)) / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(result.alignment, expected, rtol=1e-4)
    median = np.median(expected[result.correct])
    assert result.summary()["median_alignment"] == pytest.approx(median, 1e-4)


def test_other_norms_in_closed_form():
    model, x, labels = linear(2)
    exact = closed_form(model, x, labels, 1)  # dual of l-infinity
    result = benchmark(
        *(model, x, labels),
        epsilon=0.1,
        attacks=["LinfDeepFoolAttack"],
        value_range=WIDE,
        norm=math.inf,
    )
    right = exact > 0
    np.testing.assert_allclose(result.distance[right], 1.02 * exact[right], atol=SLACK)
    l2 = closed_form(model, x, labels, 2) / math.sqrt(FEATURES)
    assert (result.certified_radius[right] <= l2[right] * (1 + 1e-6)).all()
    np.testing.assert_allclose(result.certified_radius[right], l2[right], atol=2e-5)
    assert 0 < result.certified_accuracy() <= np.mean(exact > 0.1) <= result.robust_accuracy()
    assert result.robust_accuracy(0.5) == np.mean(exact > 0.5)
    assert result.violations == 0


@pytest.fixture(scope="module")
def network():
    """A small network on [0, 1], attacked in three ways."""
    rng = np.random.default_rng(3)
    stack = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    model = randomise(keras.Sequential([keras.Input((6, 6, 1)), *stack]), 3)
    x = rng.random((20, 6, 6, 1), "float32")
    labels = rng.integers(0, 3, 20)
    names = {"gradient": {}, "deepfool": {}, "fast_gradient_sign": {"max_epsilon": 0.01}}
    return model, x, labels, benchmark(model, x, labels, epsilon=0.05, attacks=names)


def test_bounds_of_the_robust_accuracy(network):
    *_, result = network
    edges = [result.certified_accuracy(0), result.robust_accuracy(0), result.accuracy]
    assert edges == [result.accuracy] * 3
    previous = (1, 1)
    for epsilon in np.linspace(0, 1, 21):
        now = result.certified_accuracy(epsilon), result.robust_accuracy(epsilon)
        assert now[0] <= now[1] <= result.accuracy
        assert now <= previous
        previous = now
    assert result.violations == 0


def test_the_smallest_perturbation_of_all_attacks_counts(network):
    model, x, labels, result = network
    apart = [
        tfrobust.minimal(model, x, name, labels=labels, **options).distance
        for name, options in (
            ("gradient", {}),
            ("deepfool", {}),
            ("fast_gradient_sign", {"max_epsilon": 0.01}),
        )
    ]
    np.testing.assert_array_equal(result.attack_distance, np.stack(apart, 1))
    np.testing.assert_array_equal(result.distance, np.minimum.reduce(apart))
    assert np.isinf(apart[2]).any()  # a failed attack
    frame = result.to_frame()
    assert len(frame) == 20
    np.testing.assert_array_equal(frame["distance_fast_gradient_sign"], apart[2])
    np.testing.assert_array_equal(frame["correct"], result.correct)
    assert not frame["distance"][~frame["correct"]].any()


def test_a_failed_attack_counts_as_infinitely_far():
    labels = np.array([0, 0, 0, 1])
    made_up = Benchmark(
        labels=labels,
        predicted=np.zeros(4, int),
        attack_distance=np.float32([[1], [np.inf], [np.inf], [0]]),
        certified_radius=np.float32([2, 0.5, 0.5, 9]),
        alignment=np.float32([1, 2, np.nan, 3]),
        linearized_robustness=np.ones(4, np.float32),
        epsilon=1.0,
        norm=2.0,
        attacks=("a",),
        uncertified=None,
    )
    summary = made_up.summary()
    assert summary["accuracy"] == 0.75
    assert summary["robust_accuracy"] == 0.5  # a perturbation of just epsilon counts
    assert summary["median_distance"] == math.inf
    assert summary["attack_success_rate"] == pytest.approx(1 / 3)
    assert summary["median_certified_radius"] == 0.5
    assert summary["median_alignment"] == 1.5  # NaN and the misclassified example are left out
    assert summary["violations"] == 1


def test_nothing_changes_the_class_of_a_constant_network():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.set_weights([np.zeros((3, 2)), np.array([1.0, 0.0])])
    x = np.full((2, 3), 0.5, "float32")
    for norm in (2, math.inf):
        result = benchmark(model, x, [0, 1], epsilon=1e6, attacks=["gradient"], norm=norm)
        assert result.robust_accuracy() == result.certified_accuracy() == 0.5
        assert result.summary()["median_distance"] == math.inf
        # as far as single precision reaches; in l-infinity over the root of three pixels
        assert result.summary()["median_certified_radius"] > 1e29


@pytest.mark.parametrize("kind", ["layer", "precision"])
def test_networks_without_certificates(kind, rng):
    if kind == "layer":
        stack = [layers.LayerNormalization(), layers.Dense(3)]
        reason = "'LayerNormalization' .* has no certified rule"
    else:
        stack = [layers.Dense(3, dtype="mixed_bfloat16")]
        reason = "computes in bfloat16"
    model = randomise(keras.Sequential([keras.Input((5,)), *stack]), 0)
    x = rng.random((4, 5), "float32")
    result = benchmark(model, x, [0, 1, 2, 0], epsilon=0.1, attacks=["gradient"])
    assert np.isnan(result.certified_radius).all()
    summary = result.summary()
    assert math.isnan(summary["certified_accuracy"])
    assert math.isnan(summary["median_certified_radius"])
    assert summary["violations"] == 0
    assert re.search(reason, summary["uncertified"])


def test_many_classes_are_searched_by_a_sketch(monkeypatch, rng):
    used = []
    measure = tfrobust.alignment.measure

    def watched(*given, search, **settings):
        used.append(search)
        return measure(*given, search=search, **settings)

    monkeypatch.setattr(tfrobust.alignment, "measure", watched)
    for classes, search in ((16, "auto"), (17, "auto"), (17, "exact")):
        model = randomise(keras.Sequential([keras.Input((5,)), layers.Dense(classes)]), 0)
        x = rng.random((2, 5), "float32")
        benchmark(model, x, [0, 1], epsilon=0.1, attacks=["deepfool"], search=search)
    assert used == ["exact", "sketch", "exact"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsilon": -1}, "epsilon must be a finite number of at least 0, got -1"),
        ({"epsilon": math.nan}, "epsilon must be"),
        ({"norm": 3}, "norm must be 1, 2 or infinity"),
        ({"attacks": ()}, "at least one attack"),
        ({"attacks": "deepfool"}, r"give \['deepfool'\]"),
        ({"attacks": ("gradient", "gradient")}, "named twice"),
        ({"attacks": ("gradient", "gradent")}, "unknown attack 'gradent'"),
        ({"labels": [0, 9]}, "labels must lie in 0..3"),
        ({"value_range": (1, 0)}, "value_range"),
    ],
)
def test_what_would_fail_late_is_said_first(changed, message, monkeypatch):
    model, x, _ = linear()
    monkeypatch.setattr(tfrobust.alignment, "measure", lambda *_, **__: pytest.fail("computed"))
    given = {"labels": [0, 1], "epsilon": 0.1, "value_range": WIDE, **changed}
    with pytest.raises(InputError, match=message):
        benchmark(model, x[:2], **given)


def test_a_setting_that_an_attack_has_not():
    model, x, labels = linear()
    with pytest.raises(TypeError, match="no setting stepz"):
        benchmark(model, x, labels, epsilon=1, attacks={"gradient": {"stepz": 1}}, value_range=WIDE)
