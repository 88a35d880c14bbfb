"""`Dataset.rescaled`: end points, rounding, provenance, and what it refuses."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust.data.arrays
from tfrobust import data
from tfrobust.errors import InputError


def made(images, value_range=(0.0, 1.0)):
    images = np.asarray(images, np.float32)
    return tfrobust.data.arrays.dataset(
        images,
        np.zeros(len(images)),
        value_range=value_range,
        name="made",
        split="test",
        source="here",
        version="1",
        processing="none",
    )


def test_digits_in_minus_one_to_one():
    digits = data.load("digits", "test")
    before = digits.images.copy()
    rescaled = digits.rescaled(-1, 1)
    assert rescaled.value_range == (-1.0, 1.0)
    assert (rescaled.images.min(), rescaled.images.max()) == (-1, 1)
    assert rescaled.images.dtype == np.float32
    # subtraction and doubling of values in [0, 1] are exact in double precision
    np.testing.assert_array_equal(rescaled.images, np.float32(2 * np.float64(before) - 1))
    np.testing.assert_array_equal(digits.images, before)
    assert rescaled.labels is digits.labels
    assert (rescaled.classes, len(rescaled)) == (10, 400)


def test_provenance_tells_both_ranges_and_has_the_new_digest():
    digits = data.load("digits", "test").take(5)
    rescaled = digits.rescaled(-1, 0.5)
    digest = hashlib.sha256(rescaled.images.tobytes() + rescaled.labels.tobytes()).hexdigest()
    assert rescaled.provenance.sha256 == digest != digits.provenance.sha256
    assert rescaled.provenance.processing == (
        digits.provenance.processing + "; rescaled from (0, 1) to (-1, 0.5)"
    )
    assert rescaled.provenance.source == digits.provenance.source
    again = rescaled.rescaled(0, 255)
    assert again.provenance.processing.endswith("(-1, 0.5); rescaled from (-1, 0.5) to (0, 255)")
    np.testing.assert_allclose(again.images, 255 * digits.images, atol=1e-4)


numbers = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
ranges = st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[0] < pair[1])


@given(ranges, ranges, st.lists(st.floats(0, 1), max_size=20))
@settings(max_examples=300)
def test_end_points_exact_inside_and_in_order(old, new, fractions):
    low, high = (np.float64(value) for value in old)
    inner = np.clip(np.float32([low + f * (high - low) for f in sorted(fractions)]), low, high)
    images = np.concatenate([[low], inner, [high]]).astype(np.float32)
    rescaled = made(images[:, None], tuple(old)).rescaled(*new)
    values = rescaled.images[:, 0]
    assert rescaled.value_range == tuple(new)
    assert (values[0], values[-1]) == tuple(new)
    assert (np.diff(values.astype(np.float64)) >= 0).all()


def test_ranges_that_float32_rounds():
    """.1 in single precision is above .1: both the range and the pixels take that value."""
    rescaled = made([[0], [1]]).rescaled(0.1, 0.7)
    assert rescaled.value_range == (float(np.float32(0.1)), float(np.float32(0.7)))
    np.testing.assert_array_equal(rescaled.images[:, 0], np.float32([0.1, 0.7]))


def test_more_rows_than_are_converted_at_a_time(rng, monkeypatch):
    images = rng.random((50, 3), dtype="float32")
    whole = made(images).rescaled(-1, 1)
    monkeypatch.setattr(tfrobust.data.arrays, "_ROWS", 7)
    np.testing.assert_array_equal(made(images).rescaled(-1, 1).images, whole.images)


def test_tables():
    iris = data.load("iris")
    rescaled = iris.rescaled(-1, 1)
    assert rescaled.value_range == (-1.0, 1.0)
    np.testing.assert_allclose(rescaled.images, iris.images / iris.value_range[1], atol=1e-7)


@pytest.mark.parametrize(
    "limits",
    [(1, -1), (0, 0), (0, np.inf), (-np.inf, 0), (np.nan, 1), ("0", "1"), (1, 1 + 1e-12)],
)
def test_limits_that_are_no_range(limits):
    with pytest.raises(InputError, match=r"must be \(minimum, maximum\), got"):
        data.load("digits", "test").take(2).rescaled(*limits)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_values_outside_their_range(value):
    with pytest.raises(InputError, match=r"made holds values .* outside its value_range \(0, 1\)"):
        made([[0.5], [value]]).rescaled(-1, 1)
