"""Thresholds and permutations of saliency maps: exact properties for arbitrary maps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfrobust.saliency import permute, targets, threshold

# few distinct values, so that ties occur, or any of moderate size
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 1e-30]),
    st.floats(-1e6, 1e6, width=32),
)
MAPS = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=VALUES)
PHI = st.floats(0, 3)
SEEDS = st.integers(0, 2**40)
FRACTIONS = st.floats(0, 1)


def bits(maps):
    """Values that distinguish -0 from 0."""
    return np.ascontiguousarray(maps).view(np.uint32)


@given(MAPS, PHI, st.booleans(), FRACTIONS, SEEDS)
def test_threshold_commutes_exactly_with_permute(maps, phi, unbiased, fraction, seed):
    unbiased = unbiased and maps[0].size > 1
    first = threshold(permute(maps, fraction, seed), phi, unbiased=unbiased)
    last = permute(threshold(maps, phi, unbiased=unbiased), fraction, seed)
    np.testing.assert_array_equal(bits(first), bits(last))


@given(SEEDS)
def test_threshold_commutes_with_permute_where_a_value_lies_on_the_bound(seed):
    """The last digit of the mean or deviation decides about values on the bound."""
    maps = np.random.default_rng(seed).normal(size=(4, 90)).astype(np.float32)
    centred = np.abs(maps[:, :1] - maps.mean(axis=1, keepdims=True, dtype=np.float64))
    deviation = maps.std(axis=1, keepdims=True, dtype=np.float64)
    for row, phi in enumerate((centred / deviation)[:, 0]):
        one = maps[row : row + 1]
        first = threshold(permute(one, 1.0, seed), phi)
        np.testing.assert_array_equal(first, permute(threshold(one, phi), 1.0, seed))


@given(MAPS, PHI, st.booleans())
def test_threshold_zeroes_what_lies_near_the_mean_and_nothing_else(maps, phi, unbiased):
    unbiased = unbiased and maps[0].size > 1
    found = threshold(maps, phi, unbiased=unbiased)
    assert found.dtype == np.float32
    assert found.shape == maps.shape
    flat = maps.reshape(len(maps), -1), found.reshape(len(maps), -1)
    for values, result in zip(*flat, strict=True):
        exact = [float(value) for value in values]
        mean = math.fsum(exact) / len(exact)
        squares = math.fsum((value - mean) ** 2 for value in exact)
        deviation = math.sqrt(squares / (len(exact) - unbiased))
        for value, kept in zip(exact, result, strict=True):
            gap = abs(value - mean) - phi * deviation
            if abs(gap) > 1e-12 * (abs(mean) + deviation + abs(value)):
                assert kept == (value if gap > 0 else 0)


def test_the_bounds_are_included():
    maps = np.array([[-1, 1, -1, 1], [3, 7, 3, 7]], np.float32)
    assert not threshold(maps, 1).any()
    np.testing.assert_array_equal(threshold(maps, 0.999), maps)
    # the unbiased deviation is larger by the root of 4 / 3
    assert not threshold(maps, 0.87, unbiased=True).any()
    np.testing.assert_array_equal(threshold(maps, 0.87), maps)
    np.testing.assert_array_equal(threshold(maps, 0.86, unbiased=True), maps)


def test_mean_and_deviation_are_of_all_channels_of_one_map_together():
    maps = np.zeros((2, 4, 4, 2), np.float32)
    maps[0, ..., 1] = 10  # within one channel all values are equal
    maps[1] = 3
    found = threshold(maps, 0.5)
    np.testing.assert_array_equal(found[0], maps[0])
    assert not found[1].any()


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(1, 50), PHI)
def test_a_constant_map_becomes_zero(value, size, phi):
    assert not threshold(np.full((2, size), value, np.float32), phi).any()


def test_a_sharp_threshold_keeps_the_sign_and_the_value():
    maps = np.zeros((1, 5, 5, 1), np.float32)
    maps[0, 2, 3, 0], maps[0, 4, 4, 0] = -0.25, 0.125
    np.testing.assert_array_equal(threshold(maps, 1), maps)
    np.testing.assert_array_equal(threshold(maps, 3)[0, 4, 4, 0], 0)


def test_maps_are_processed_in_chunks(monkeypatch):
    maps = np.random.default_rng(0).normal(size=(11, 4, 5, 1)).astype(np.float32)
    whole = threshold(maps, 1)
    monkeypatch.setattr(targets, "_VALUES", 60)
    assert [part.stop - part.start for part in targets._parts(maps.reshape(11, 20))] == [3] * 4
    np.testing.assert_array_equal(threshold(maps, 1), whole)


@given(MAPS, FRACTIONS, SEEDS)
def test_a_permutation_keeps_the_values_of_every_map(maps, fraction, seed):
    found = permute(maps, fraction, seed)
    assert found.dtype == np.float32
    assert found.shape == maps.shape
    for before, after in zip(maps, found, strict=True):
        np.testing.assert_array_equal(np.sort(bits(before), axis=None), np.sort(bits(after), None))
    moved = (bits(maps) != bits(found)).reshape(len(maps), -1).sum(axis=1)
    assert (moved <= int(fraction * maps[0].size)).all()
    np.testing.assert_array_equal(bits(permute(maps, fraction, seed)), bits(found))


@given(MAPS, FRACTIONS, SEEDS, st.data())
def test_a_prefix_is_permuted_alike(maps, fraction, seed, data):
    count = data.draw(st.integers(1, len(maps)))
    whole = permute(maps, fraction, seed)
    np.testing.assert_array_equal(bits(permute(maps[:count], fraction, seed)), bits(whole[:count]))


@given(MAPS, SEEDS)
def test_a_probability_of_zero_is_the_identity_and_the_argument_is_unchanged(maps, seed):
    before = maps.copy()
    np.testing.assert_array_equal(bits(permute(maps, 0, seed)), bits(before))
    permute(maps, 1, seed)
    threshold(maps, 1)
    np.testing.assert_array_equal(bits(maps), bits(before))


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1])
def test_the_chosen_positions_and_their_order_are_uniform(fraction):
    size, count = 40, 3000
    maps = np.tile(np.arange(size, dtype=np.float32), (count, 1))
    found = permute(maps, fraction, seed=4)
    chosen = int(fraction * size)
    moved = (found != maps).sum(axis=1)
    # a permutation has one fixed point on average, with variance one
    assert abs(moved.mean() - (chosen - 1)) < 5 / np.sqrt(count)
    stays = 1 - fraction + 1 / size
    for position in (0, 17, 39):
        counts = np.bincount(found[:, position].astype(int), minlength=size) / count
        assert abs(counts[position] - stays) < 5 * np.sqrt(stays * (1 - stays) / count) + 1e-9
        others = np.delete(counts, position)
        expected = (1 - stays) / (size - 1)
        assert np.abs(others - expected).max() < 5 * np.sqrt(expected / count)
    assert len(np.unique(found, axis=0)) == count
    other = permute(maps, fraction, seed=5)
    assert (other != found).any(axis=1).all()


def test_bad_input_is_refused():
    maps = np.ones((3, 2, 2), np.float32)
    for phi in (-0.1, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="phi must be at least 0 and finite"):
            threshold(maps, phi)
    for probability in (-0.1, math.nan):
        with pytest.raises(ValueError, match="probability must be at least 0"):
            permute(maps, probability, 0)
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 1\.01"):
        permute(maps, 1.01, 0)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        permute(maps, 0.5, -1)
    with pytest.raises(ValueError, match="no unbiased standard deviation"):
        threshold(maps[:, :1, :1], 1, unbiased=True)
    for value in (math.nan, math.inf):
        broken = maps.copy()
        broken[1, 0, 1] = value
        for transform in (lambda m: threshold(m, 1), lambda m: permute(m, 1, 0)):
            with pytest.raises(ValueError, match="NaN or infinite values, first in map 1"):
                transform(broken)
            for wrong in (np.ones(3), np.ones((0, 3)), 1.0):
                with pytest.raises(ValueError, match="maps must be a batch"):
                    transform(wrong)
            with pytest.raises(ValueError, match="maps must hold numbers"):
                transform(np.array([["a"]]))
