"""Correlations against SciPy, and their intervals against a bootstrap of our own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tfrobust.retraining import correlation


def pairs(count=20, slope=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return x, slope * x + rng.normal(size=count)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(3, 30), st.booleans())
def test_coefficients_against_scipy(seed, count, tied):
    x, y = pairs(count, seed=seed)
    if tied:
        x, y = np.round(x), np.round(y)
    found = correlation(x, y, resamples=20)
    if np.ptp(x) and np.ptp(y):
        assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
        assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
    else:
        assert np.isnan([found.pearson, found.spearman]).all()


def test_intervals_against_a_loop():
    x, y = pairs(21)
    rng = np.random.default_rng(5)
    values = []
    for _ in range(2000):
        rows = rng.integers(0, 21, 21)
        ranks = stats.rankdata(x[rows]), stats.rankdata(y[rows])
        values.append((np.corrcoef(x[rows], y[rows])[0, 1], np.corrcoef(*ranks)[0, 1]))
    low, high = np.quantile(values, (0.05, 0.95), axis=0)
    found = correlation(x, y, confidence=0.9)
    np.testing.assert_allclose(found.pearson_interval, (low[0], high[0]), atol=0.03)
    np.testing.assert_allclose(found.spearman_interval, (low[1], high[1]), atol=0.03)
    assert found.points == 21
    assert found.confidence == 0.9


def test_intervals_cover_the_true_correlation():
    """Of a normal pair with slope 1 it is 1 / sqrt(2); percentile intervals are a little narrow."""
    truth, covered = np.sqrt(0.5), 0
    for seed in range(100):
        low, high = correlation(*pairs(40, seed=seed), resamples=200).pearson_interval
        covered += low <= truth <= high
    assert 0.85 < covered / 100 < 0.99


def test_it_is_seeded_and_invariant():
    x, y = pairs()
    found = correlation(x, y)
    assert found == correlation(x, y)
    assert found != correlation(x, y, seed=1)
    np.testing.assert_allclose(
        correlation(3 * x + 1, -y).pearson_interval, np.negative(found.pearson_interval)[::-1]
    )
    assert correlation(np.exp(x), y).spearman == pytest.approx(found.spearman)
    wide, narrow = (correlation(x, y, confidence=c).pearson_interval for c in (0.99, 0.5))
    assert wide[0] < narrow[0] < found.pearson < narrow[1] < wide[1]


def test_few_pairs_and_perfect_ones():
    found = correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    assert np.isfinite([*found.pearson_interval, *found.spearman_interval]).all()
    assert found.pearson_interval[0] < 0.8 < found.pearson_interval[1]
    perfect = correlation([1, 2, 3], [2, 4, 6])
    assert perfect.pearson == perfect.spearman == pytest.approx(1)
    np.testing.assert_allclose(perfect.pearson_interval, (1, 1))
    constant = correlation([1, 1, 1], [1, 2, 3])
    assert np.isnan([constant.pearson, constant.spearman, *constant.pearson_interval]).all()


def test_bad_input_is_refused():
    for x, y in (([1, 2], [1, 2]), ([1, 2, 3], [1, 2, 3, 4])):
        with pytest.raises(ValueError, match="the same 3 or more points"):
            correlation(x, y)
    for wrong in ([1, 2, np.nan], [[1, 2, 3]], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="x must be finite numbers"):
            correlation(wrong, [1, 2, 3])
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
            correlation([1, 2, 3], [1, 2, 3], confidence=confidence)
    with pytest.raises(ValueError, match="resamples"):
        correlation([1, 2, 3], [1, 2, 3], resamples=0)
