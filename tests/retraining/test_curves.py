"""Areas, scores and their errors against the released formula, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrobust.retraining import FRACTIONS, RetrainingCurve, RetrainingScore

ENDS = (0.7366, 0.1)
ACCURACIES = st.lists(st.floats(0, 1), min_size=5, max_size=5)


def curve(method, accuracies, fractions=FRACTIONS, ends=ENDS):
    """Of accuracies (fractions,) or (fractions, retrains)."""
    accuracies = np.array(accuracies, float).reshape(len(fractions), -1)
    return RetrainingCurve(method, np.array(fractions), accuracies, *ends)


def released_score(method, accuracies, random):
    """Kim 2019's released code: closed lists of mean accuracies and scikit-learn's `auc`."""
    x = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
    if method == "roar":
        delta = np.array([0.7366, *random, 0.1]) - np.array([0.7366, *accuracies, 0.1])
    else:
        delta = (np.array([0.1, *accuracies, 0.7366]) - np.array([0.1, *random, 0.7366]))[::-1]
    return sum(
        (b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], delta, delta[1:], strict=False)
    )


@given(ACCURACIES, ACCURACIES)
def test_scores_are_those_of_the_released_code(accuracies, random):
    """There the random curve of KAR is listed by the share that is kept: ROAR's, mirrored."""
    baseline = curve("random", random)
    for method, listed in (("roar", random), ("kar", random[::-1])):
        score = RetrainingScore(curve(method, accuracies), baseline)
        assert score.mu == pytest.approx(released_score(method, accuracies, listed), abs=1e-12)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True), st.data())
def test_areas_against_numpy(percents, data):
    fractions = np.sort(percents) / 100
    accuracies = data.draw(
        st.lists(st.floats(0, 1), min_size=len(percents), max_size=len(percents))
    )
    removed = curve("roar", accuracies, fractions)
    x, y = [0, *fractions, 1], [ENDS[0], *accuracies, ENDS[1]]
    assert removed.area == pytest.approx(np.trapezoid(y, x), abs=1e-12)
    kept = curve("kar", accuracies, fractions)
    x, y = [0, *(1 - fractions)[::-1], 1], [ENDS[0], *accuracies[::-1], ENDS[1]]
    assert kept.area == pytest.approx(np.trapezoid(y, x), abs=1e-12)
    np.testing.assert_allclose(kept.closed[0], x, atol=1e-12)
    np.testing.assert_array_equal(kept.closed[1], y)


def test_known_areas():
    # a straight line from .8 to .2, and one that lies at .2 wherever pixels are missing
    straight = curve("random", [0.74, 0.62, 0.5, 0.38, 0.26], ends=(0.8, 0.2))
    assert straight.area == pytest.approx(0.5)
    lost = curve("roar", [0.2] * 5, ends=(0.8, 0.2))
    assert lost.area == pytest.approx(0.2 + 0.1 * 0.3)
    kept = curve("kar", [0.8] * 5, ends=(0.8, 0.2))
    assert kept.area == pytest.approx(0.8 - 0.1 * 0.3)
    for best in (lost, kept):
        score = RetrainingScore(best, straight)
        assert score.mu == pytest.approx(0.27)
        assert score.baseline_area == pytest.approx(0.5)
        assert score.area == pytest.approx(0.77)


def test_a_random_attribution_scores_zero():
    random = [0.7, 0.6, 0.45, 0.3, 0.2]
    baseline = curve("random", random)
    assert RetrainingScore(curve("roar", random), baseline).mu == 0
    assert RetrainingScore(curve("kar", random[::-1]), baseline).mu == pytest.approx(0, abs=1e-15)


def test_the_ends_cancel_in_the_score():
    accuracies, random = [0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.5, 0.4, 0.3, 0.2]
    scores = [
        RetrainingScore(curve("roar", accuracies, ends=ends), curve("random", random, ends=ends)).mu
        for ends in ((0.7, 0.1), (0.9, 0.3))
    ]
    assert scores[0] == pytest.approx(scores[1]) == pytest.approx(0.09)


@pytest.mark.parametrize("method", ["roar", "kar"])
def test_the_standard_error_is_the_deviation_of_simulated_scores(method):
    rng = np.random.default_rng(0)
    sigma = np.array([0.005, 0.02, 0.01, 0.03, 0.015])
    scores, errors = [], []
    for _ in range(800):
        own = curve(method, 0.5 + rng.normal(0, 1, (5, 4)) * sigma[:, None])
        random = curve("random", 0.5 + rng.normal(0, 1, (5, 3)) * sigma[::-1, None])
        score = RetrainingScore(own, random)
        scores.append(score.mu)
        errors.append(score.standard_error)
        assert score.standard_error > max(own.area_error, random.area_error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(scores), rel=0.08)


def test_one_retrain_takes_the_spread_of_the_other_curve():
    rng = np.random.default_rng(0)
    many, single = rng.random((5, 3)), rng.random((5, 1))
    weights = np.array([0.15, 0.2, 0.2, 0.2, 0.15])
    area_error = np.sqrt(np.sum(weights**2 * many.var(axis=1, ddof=1)))
    score = RetrainingScore(curve("roar", single), curve("random", many))
    assert score.baseline.area_error == pytest.approx(area_error / np.sqrt(3))
    assert score.standard_error == pytest.approx(area_error * np.sqrt(1 + 1 / 3))
    swapped = RetrainingScore(curve("roar", many), curve("random", single))
    assert swapped.standard_error == pytest.approx(score.standard_error)
    assert np.isnan(score.curve.area_error)
    assert np.isnan(score.curve.spread).all()
    both_single = RetrainingScore(curve("kar", single), curve("random", single))
    assert np.isnan(both_single.standard_error)
    assert np.isfinite(both_single.mu)


def test_a_baseline_of_more_points_serves_curves_of_fewer():
    accuracies = np.random.default_rng(0).random((5, 2))
    baseline = curve("random", accuracies)
    removed = RetrainingScore(curve("roar", [0.3, 0.2], (0.3, 0.9)), baseline)
    rows = accuracies[[1, 4]].mean(axis=1)
    expected = np.trapezoid([ENDS[0], *rows, ENDS[1]], [0, 0.3, 0.9, 1])
    assert 1 - removed.baseline_area == pytest.approx(expected)
    kept = RetrainingScore(curve("kar", [0.2, 0.3], (0.1, 0.7)), baseline)
    assert kept.baseline_area == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"a share of 0.2 of the pixels is replaced, only at"):
        RetrainingScore(curve("roar", [0.2], (0.2,)), baseline)
    with pytest.raises(ValueError, match="closed by the same accuracies"):
        RetrainingScore(curve("roar", [0.2], (0.3,), ends=(0.8, 0.1)), baseline)


def test_tables():
    baseline = curve("random", np.arange(10).reshape(5, 2) / 10)
    score = RetrainingScore(curve("kar", np.arange(5) / 10), baseline)
    frame = score.to_frame()
    assert list(frame) == ["method", "fraction", "removed", "retrain", "accuracy"]
    assert len(frame) == 15
    kept = frame[frame["method"] == "kar"]
    np.testing.assert_allclose(kept["removed"], 1 - kept["fraction"])
    random = frame[(frame["method"] == "random") & (frame["retrain"] == 1)]
    np.testing.assert_allclose(random["accuracy"], [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_array_equal(random["removed"], FRACTIONS)
    summary = score.summary()
    assert summary["mu"] == score.mu == summary["area"] - summary["baseline_area"]
    assert summary["method"] == "kar"
