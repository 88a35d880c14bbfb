"""Which pixels are replaced, against the released code's rule in NumPy and exact counts."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfrobust.retraining import (
    mean_colour,
    occlude,
    occlude_at_random,
    occluded_pixels,
    occlusion,
    pixel_attribution,
)

PERCENT = st.integers(1, 99)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def released(attribution, percent, keep):
    """The rule of Kim 2019's released code: strictly above, or below, the percentile."""
    threshold = np.percentile(attribution, 100 - percent, axis=(1, 2), keepdims=True)
    return attribution < threshold if keep else attribution > threshold


def rank(pixels, percent):
    """Of the percentile among the pixels, exactly."""
    return Fraction((pixels - 1) * (100 - percent), 100)


def replaced_count(pixels, percent, keep):
    place = rank(pixels, percent)
    return math.ceil(place) if keep else pixels - 1 - math.floor(place)


@st.composite
def distinct_maps(draw):
    shape = draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = rng.permuted(np.tile(np.arange(math.prod(shape[1:])), (shape[0], 1)), axis=1)
    return (values**2).reshape(shape).astype(np.float32)


@st.composite
def tied_maps(draw):
    shape = draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return rng.integers(0, draw(st.integers(1, 4)), shape).astype(np.float32)


@given(distinct_maps(), PERCENT, st.booleans())
def test_distinct_values_are_replaced_as_in_the_released_code(maps, percent, keep):
    # where the rank is whole NumPy's rounding decides
    assume(rank(maps[0].size, percent).denominator > 1)
    found = occluded_pixels(maps, percent / 100, keep=keep)
    np.testing.assert_array_equal(found, released(maps.astype(np.float64), percent, keep))


@given(st.one_of(distinct_maps(), tied_maps()), PERCENT, st.booleans())
def test_the_number_of_replaced_pixels_is_exact_and_their_order_is_kept(maps, percent, keep):
    mask = occluded_pixels(maps, percent / 100, keep=keep)
    assert mask.shape == maps.shape
    for values, replaced in zip(maps, mask, strict=True):
        assert replaced.sum() == replaced_count(values.size, percent, keep)
        if replaced.any() and not replaced.all():
            low, high = (~replaced, replaced) if not keep else (replaced, ~replaced)
            assert values[low].max() <= values[high].min()


def test_the_counts_of_kim_2019():
    """32 x 32 pixels: shares of a tenth to nine tenths, and what KAR leaves is what ROAR takes."""
    maps = np.random.default_rng(0).random((2, 32, 32))
    fractions = (0.1, 0.3, 0.5, 0.7, 0.9)
    counts = [int(occluded_pixels(maps, f)[0].sum()) for f in fractions]
    assert counts == [103, 307, 512, 717, 921]
    kept = [int((~occluded_pixels(maps, f, keep=True))[0].sum()) for f in fractions]
    assert kept == counts


@given(st.one_of(distinct_maps(), tied_maps()), PERCENT, PERCENT)
def test_a_larger_fraction_replaces_more_of_the_same_pixels(maps, one, other):
    small, large = sorted((one, other))
    removed = [occluded_pixels(maps, p / 100) for p in (small, large)]
    assert (removed[0] <= removed[1]).all()
    kept = [occluded_pixels(maps, p / 100, keep=True) for p in (small, large)]
    assert (kept[0] >= kept[1]).all()


@given(st.one_of(distinct_maps(), tied_maps()), PERCENT)
def test_roar_and_kar_are_complementary(maps, percent):
    """But for the pixel at the quantile, where there is one, which both keep."""
    removed = occluded_pixels(maps, percent / 100)
    others = occluded_pixels(maps, percent / 100, keep=True)
    assert not (removed & others).any()
    left = (~removed & ~others).sum(axis=(1, 2))
    assert (left == (rank(maps[0].size, percent).denominator == 1)).all()


def test_maps_of_zeros_are_ordered_at_random():
    maps = np.zeros((400, 6, 6), np.float32)
    mask = occluded_pixels(maps, 0.3)
    assert (mask.sum(axis=(1, 2)) == replaced_count(36, 30, False)).all()
    # each pixel about as often as any other
    share = mask.mean(axis=0)
    expected = mask[0].mean()
    assert np.abs(share - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 400)
    np.testing.assert_array_equal(mask, occluded_pixels(maps, 0.3))
    assert (mask != occluded_pixels(maps, 0.3, seed=1)).any()


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_results_do_not_depend_on_the_block_size(monkeypatch, noise):
    maps = np.random.default_rng(0).integers(0, 3, (11, 5, 4)).astype(float)
    images = np.random.default_rng(1).random((11, 5, 4, 1))
    whole = occluded_pixels(maps, 0.4, noise=noise)
    at_random = occlude_at_random(images, 0.4, colour=0)
    monkeypatch.setattr(occlusion, "_BLOCK", 3)
    np.testing.assert_array_equal(occluded_pixels(maps, 0.4, noise=noise), whole)
    np.testing.assert_array_equal(occlude_at_random(images, 0.4, colour=0), at_random)


def test_the_released_noise_hides_small_gradients_and_the_default_does_not():
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(36) for _ in range(50)]).reshape(50, 6, 6)
    expected = released(ranks, 50, False)
    for scale, hidden in ((1e-2, False), (1e-12, True)):
        maps = scale * (ranks + 1)
        np.testing.assert_array_equal(occluded_pixels(maps, 0.5), expected)
        with_noise = occluded_pixels(maps, 0.5, noise=1e-8)
        agreement = (with_noise == expected).mean()
        assert (agreement < 0.6) if hidden else (agreement == 1)
        assert (with_noise.sum(axis=(1, 2)) == 18).all()


@given(st.integers(0, 2**31), PERCENT, st.booleans())
def test_occluded_images_against_numpy(seed, percent, keep):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(3, 6, 7, 3)).astype(np.float32)
    before = images.copy()
    gradients = rng.normal(size=images.shape).astype(np.float32)
    colour = rng.normal(size=3).astype(np.float32)
    found = occlude(images, gradients, percent / 100, keep=keep, colour=colour)
    mask = occluded_pixels(np.abs(gradients).sum(-1), percent / 100, keep=keep)
    expected = images.copy()
    for i, row, column in np.argwhere(mask):
        expected[i, row, column] = colour
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(images, before)


def test_bytes_take_the_colour_untruncated():
    """The released code writes the mean colour into test images of type uint8."""
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    colour = np.array([125.3, 122.95, 113.87])
    found = occlude(images, images, 0.5, colour=colour)
    mask = occluded_pixels(images.astype(float), 0.5)
    np.testing.assert_array_equal(found[mask], np.broadcast_to(colour.astype(np.float32), (16, 3)))
    np.testing.assert_array_equal(found[~mask], images[~mask])


def test_attribution_of_a_pixel_is_the_sum_of_absolute_values():
    maps = np.random.default_rng(0).normal(size=(4, 3, 2, 5))
    np.testing.assert_allclose(pixel_attribution(maps), np.abs(maps).sum(-1), rtol=1e-15)
    single = maps.astype(np.float32)
    before = single.copy()
    assert pixel_attribution(single).dtype == np.float32
    np.testing.assert_array_equal(single, before)
    # a ranking is taken as it is: the sign counts
    np.testing.assert_array_equal(pixel_attribution(maps[..., 0]), maps[..., 0])
    signed = np.array([[[-3.0, 1.0], [2.0, 0.0]]])
    np.testing.assert_array_equal(occluded_pixels(signed, 0.3), signed == 2.0)
    np.testing.assert_array_equal(occluded_pixels(signed[..., None], 0.3), signed[:] == -3.0)


def test_random_pixels_are_independent_and_seeded():
    images = np.ones((300, 8, 8, 2), np.float32)
    found = occlude_at_random(images, 0.3, colour=[5, 7], seed=3)
    mask = found[..., 0] == 5
    np.testing.assert_array_equal(found, np.where(mask[..., None], [5, 7], 1))
    count = mask.size
    assert abs(mask.mean() - 0.3) < 5 * np.sqrt(0.21 / count)
    # Bernoulli: the number per image varies, with a binomial's variance
    variance = mask.sum(axis=(1, 2)).var()
    assert abs(variance / (64 * 0.21) - 1) < 5 * np.sqrt(2 / 300)
    neighbours = (mask[:, :-1] & mask[:, 1:]).mean()
    assert abs(neighbours - 0.09) < 0.01
    np.testing.assert_array_equal(found, occlude_at_random(images, 0.3, colour=[5, 7], seed=3))
    assert (found != occlude_at_random(images, 0.3, colour=[5, 7], seed=4)).any()


def test_the_mean_colour():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3)).astype(np.uint8)
    expected = [images[..., c].astype(float).sum() / 60 for c in range(3)]
    np.testing.assert_allclose(mean_colour(images), expected, rtol=1e-6)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, np.nan, "0.3", None, [0.3], True])
def test_fractions_outside_of_0_to_1_are_refused(fraction):
    images, maps = np.zeros((2, 3, 3, 1)), np.zeros((2, 3, 3))
    with pytest.raises(ValueError, match="a fraction must lie between 0 and 1"):
        occlude(images, maps, fraction, colour=0)
    with pytest.raises(ValueError, match="a fraction must lie between 0 and 1"):
        occlude_at_random(images, fraction, colour=0)


def test_bad_input_is_refused():
    images, maps = np.zeros((2, 3, 4, 3)), np.zeros((2, 3, 4))
    for shape in ((2, 4, 3), (3, 3, 4), (2, 3, 3, 3)):
        with pytest.raises(ValueError, match=r"of images \(.*\), but the images are \(2, 3, 4\)"):
            occlude(images, np.zeros(shape), 0.5, colour=0)
    for wrong in (np.zeros((2, 3)), np.zeros((0, 3, 4)), np.full((2, 3, 4), "a")):
        with pytest.raises(ValueError, match="an attribution must be numbers"):
            occlude(images, wrong, 0.5, colour=0)
    with pytest.raises(ValueError, match="NaN or infinite values for 1 of 2 images, first for im"):
        occlude(images, np.stack([maps[0], maps[1] + np.nan]), 0.5, colour=0)
    with pytest.raises(ValueError, match="images must be numbers"):
        occlude(images[0], maps, 0.5, colour=0)
    with pytest.raises(ValueError, match="the images hold NaN"):
        occlude(images + np.inf, maps, 0.5, colour=0)
    with pytest.raises(ValueError, match="the images hold NaN"):
        mean_colour(images + np.nan)
    for colour in ([0, 0], np.nan, "red", np.zeros((1, 3))):
        with pytest.raises(ValueError, match="colour must be 3 finite numbers"):
            occlude(images, maps, 0.5, colour=colour)
    with pytest.raises(ValueError, match="noise must be at least 0"):
        occlude(images, maps, 0.5, colour=0, noise=-1)
    for call in (occlude_at_random, lambda i, f, **o: occlude(i, maps, f, **o)):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            call(images, 0.5, colour=0, seed=-1)
