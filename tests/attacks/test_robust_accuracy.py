"""Robust accuracy: its figures against searches one by one, and what is refused."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust import data
from tfrobust.attacks import RobustAccuracy, ThreatModel, pgd, robust_accuracy
from tfrobust.errors import InputError
from tfrobust.training import computing_in

layers = keras.layers
L2 = ThreatModel(norm=2, epsilon=0.3, step_size=0.1, steps=2, random_start="ball")
LINF = ThreatModel(norm=np.inf, epsilon=0.05, steps=3)


@pytest.fixture
def labels(cnn, images):
    """Of which a quarter are wrong."""
    predicted = np.asarray(cnn(images)).argmax(axis=1)
    return np.where(np.arange(24) % 4 == 0, (predicted + 1) % 5, predicted)


def test_every_restart_is_a_search_of_its_own(cnn, images, labels):
    several, one = robust_accuracy(cnn, (images, labels), [L2, LINF], batch_size=7)
    predicted = np.asarray(cnn(images)).argmax(axis=1)
    assert several.accuracy == one.accuracy == (predicted == labels).mean()
    assert several.resisted.shape == (24, 3)
    assert len(several) == len(one) == 24
    # the k-th restart is what is left of the first k, each spent on what the earlier ones left
    settings = {"norm": 2, "epsilon": 0.3, "step_size": 0.1, "steps": 2, "random_start": "ball"}
    for restarts in (1, 2, 3):
        result = pgd(cnn, images, labels, restarts=restarts, **settings)
        resisted = several.resisted[:, :restarts].all(axis=1)
        np.testing.assert_array_equal(result.success, ~resisted)
    accuracies = several.resisted.mean(axis=0)
    np.testing.assert_allclose(several.restart_accuracy, accuracies)
    assert several.mean == pytest.approx(accuracies.mean())
    assert several.spread == pytest.approx(accuracies.std(ddof=1))
    assert several.worst_case == (several.resisted.all(axis=1) & several.correct).mean()
    assert several.worst_case < several.mean
    # without a random start one search is enough
    assert one.resisted.shape == (24, 1)
    alone = pgd(cnn, images, labels, norm=np.inf, epsilon=0.05, steps=3)
    np.testing.assert_array_equal(one.resisted[:, 0], ~alone.success)
    assert one.mean == one.worst_case < one.accuracy
    assert math.isnan(one.spread)


@pytest.mark.parametrize("stop", ["success", "last"])
def test_the_worst_case_costs_less_and_is_the_same(cnn, images, labels, stop):
    options = {"restarts": 4, "stop": stop, "seed": 2}
    [every] = robust_accuracy(cnn, (images, labels), L2, **options)
    [worst] = robust_accuracy(cnn, (images, labels), L2, every_restart=False, **options)
    assert every.worst_case == worst.worst_case
    np.testing.assert_array_equal(every.correct, worst.correct)
    searched = np.cumprod(worst.correct[:, None] & every.resisted, axis=1)
    np.testing.assert_array_equal(worst.resisted, searched)
    assert every.mean >= every.worst_case
    assert np.isnan([worst.mean, worst.spread, *worst.restart_accuracy]).all()


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_the_mean_is_never_below_the_worst_case(seed, restarts, every_restart):
    rng = np.random.default_rng(seed)
    correct = rng.random(9) < rng.random()
    resisted = rng.random((9, restarts)) < rng.random()
    result = RobustAccuracy(L2, correct, resisted, np.zeros(9, bool), every_restart)
    assert not result.mean < result.worst_case
    assert result.worst_case <= result.accuracy


def test_streams_batches_and_other_threats_change_nothing(cnn, images, labels):
    [whole] = robust_accuracy(cnn, (images, labels), L2)
    stream = data.Arrays({"images": images, "labels": labels}, 5)
    named = {"images": images, "labels": labels, "others": labels}
    for given_data, threats, batch_size in (
        (stream, [L2], 100),
        (named, [L2], 5),
        ((images, labels), [LINF, L2], 24),
    ):
        *_, other = robust_accuracy(cnn, given_data, threats, batch_size=batch_size)
        for field in ("correct", "resisted", "zero_gradient"):
            np.testing.assert_array_equal(getattr(other, field), getattr(whole, field))
    [differs] = robust_accuracy(cnn, (images, labels), L2, seed=1)
    assert (differs.resisted != whole.resisted).any()


def test_predictions_as_labels(cnn, images, labels):
    [result] = robust_accuracy(cnn, (images, labels), LINF, labels="predicted")
    assert result.accuracy == 1
    alone = pgd(cnn, images, norm=np.inf, epsilon=0.05, steps=3)
    np.testing.assert_array_equal(result.resisted[:, 0], ~alone.success)
    [true] = robust_accuracy(cnn, (images, labels), LINF)
    np.testing.assert_array_equal(result.resisted[true.correct], true.resisted[true.correct])


def test_a_radius_of_zero_gives_the_accuracy(cnn, images, labels):
    threats = [ThreatModel(norm=p, epsilon=0, steps=2) for p in (2, np.inf)]
    for result in robust_accuracy(cnn, (images, labels), threats):
        assert result.accuracy == result.worst_case == result.mean == 0.75
        np.testing.assert_array_equal(result.resisted[:, 0], result.correct)


def test_examples_whose_gradient_vanishes_are_counted(cnn, images, labels):
    *_, bias = cnn.layers[-1].get_weights()
    confident = bias + 300 * np.eye(5)[2].astype("f4")
    cnn.layers[-1].set_weights([cnn.layers[-1].get_weights()[0], confident])
    floor = dataclasses.replace(L2, floor=1e-8)
    correct = (images, np.full(24, 2))
    moving, still = robust_accuracy(cnn, correct, [L2, floor])
    assert (moving.zero_gradient.sum(), still.zero_gradient.sum()) == (0, 24)
    assert still.summary()["zero_gradient"] == 24
    [wrong] = robust_accuracy(cnn, (images, np.full(24, 1)), floor)
    assert not wrong.zero_gradient.any()


def test_figures_as_plain_data_and_rows(cnn, images, labels):
    several, one = robust_accuracy(cnn, (images, labels), [L2, LINF])
    summary = several.summary()
    again = json.loads(json.dumps(summary))
    assert again == {**summary, "value_range": [0.0, 1.0]}  # JSON has no tuples
    assert again["norm"] == 2
    assert (again["examples"], again["restarts"], again["worst_case"]) == (
        24,
        3,
        several.worst_case,
    )
    assert (again["accuracy"], again["mean"]) == (several.accuracy, several.mean)
    # the infinite norm and the spread of a single restart are no JSON numbers
    plain = {key: value for key, value in one.summary().items() if key not in ("norm", "spread")}
    json.dumps(plain, allow_nan=False)
    frame = several.to_frame()
    assert list(frame) == ["correct", "resisted_1", "resisted_2", "resisted_3", "zero_gradient"]
    np.testing.assert_array_equal(frame["resisted_2"], several.resisted[:, 1])
    assert str(LINF) == "linf 0.05, 3 steps"
    assert str(dataclasses.replace(L2, objective="carlini_wagner")) == "l2 0.3, 2 steps, CW"


def test_half_precision_is_judged_in_single_precision(rng):
    keras.utils.set_random_seed(1)
    full = keras.Sequential([keras.Input((20,)), layers.Dense(30, "relu"), layers.Dense(3)])
    with computing_in("mixed_bfloat16"):
        half = keras.Sequential([keras.Input((20,)), layers.Dense(30, "relu"), layers.Dense(3)])
    half.set_weights(full.get_weights())
    x = rng.random((2000, 20)).astype("f4")
    logits = np.sort(full(x), axis=1)
    x = x[np.argsort(logits[:, -1] - logits[:, -2])[:100]]  # near a tie
    y = np.asarray(full(x)).argmax(axis=1)
    assert (np.asarray(half(x)).argmax(axis=1) != y).any()
    nothing, something = (ThreatModel(norm=2, epsilon=e, steps=2) for e in (0, 0.01))
    clean, attacked = robust_accuracy(half, (x, y), [nothing, something])
    assert clean.accuracy == clean.worst_case == 1
    assert attacked.accuracy == 1
    assert 0 < attacked.worst_case < 1
    [predicted] = robust_accuracy(half, (x, 0 * y), nothing, labels="predicted")
    assert predicted.worst_case == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "mine"}, 'labels must be "true" or "predicted", got \'mine\''),
        ({"threat_models": []}, "threat_models must be one or several ThreatModels"),
        ({"threat_models": 0.1}, "threat_models must be one or several ThreatModels"),
        ({"threat_models": [L2, "linf"]}, "threat_models must be one or several ThreatModels"),
        ({"threat_models": ThreatModel(norm=2, epsilon=8.1)}, "epsilon 8.1 exceeds 8, the largest"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1, got 0"),
        ({"stop": "never"}, 'stop must be "success" or "last"'),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"scale": 255}, "outside value_range .*give the range of the model's input"),
        ({"y": np.eye(5)[[0] * 24]}, "Give class indices, not one-hot rows"),
        ({"y": np.full(24, 5)}, "0..4 for 5 classes"),
    ],
)
def test_bad_input(cnn, images, labels, changes, message):
    changes = dict(changes)
    some = images * changes.pop("scale", 1), changes.pop("y", labels)
    with pytest.raises(InputError, match=message):
        robust_accuracy(cnn, some, **{"threat_models": L2, **changes})


def test_outputs_that_are_not_finite_are_no_correct_classification():
    # the logit of class 1 is log(x_0 - .5): NaN where the search of class 1 leads
    inputs = keras.Input((1,))
    lead = keras.ops.log(inputs - 0.5) + 5
    model = keras.Model(inputs, keras.ops.concatenate([0 * lead, lead], axis=1))
    x = np.array([[0.9], [0.52]], np.float32)
    threat = ThreatModel(norm=math.inf, epsilon=0.05, step_size=0.05, steps=1)
    (result,) = robust_accuracy(model, (x, np.array([1, 1])), threat)
    assert result.correct.tolist() == [True, True]
    assert result.resisted[:, 0].tolist() == [True, False]
    found = pgd(model, x, [1, 1], norm=math.inf, epsilon=0.05, step_size=0.05, steps=1)
    assert found.adversarial_label.tolist() == [1, -1] and not found.success.any()
    # argmax of NaN is 0: neither is the unperturbed image a correct one of class 0
    (broken,) = robust_accuracy(model, (np.array([[0.4]], np.float32), np.array([0])), threat)
    assert (broken.accuracy, broken.worst_case) == (0, 0)
