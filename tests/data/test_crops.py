"""Crops against Pillow and NumPy, draws against their ranges, hue against colorsys."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfrobust.data.crops import centre_crop, random_crop


def longer(shorter, longer_, side):
    return int(side / shorter * longer_ + 1)


def bilinear(image, height, width):
    """Float64, pixel centres at half-integers, edges repeated."""
    out = np.asarray(image, np.float64)
    for axis, new in ((0, height), (1, width)):
        old = out.shape[axis]
        at = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (2 - axis))
        first = np.take(out, np.clip(low, 0, old - 1), axis)
        second = np.take(out, np.clip(low + 1, 0, old - 1), axis)
        out = first * (1 - share) + second * share
    return out


def ramp(height, width):
    """Red tells the row, green the column, both linear; blue is constant."""
    rows, columns = np.mgrid[:height, :width]
    blue = np.full((height, width), 128)
    return np.stack([rows * 255 / height, columns * 255 / width, blue], -1).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 60), (61, 40), (50, 50), (7, 90), (300, 33)])
@pytest.mark.parametrize("size", [(32, 32), (24, 31), (1, 5)])
def test_centre_crop_is_the_middle_of_the_scaled_image(rng, shape, size):
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    height, width = shape
    long = longer(min(shape), max(shape), 32)
    scaled = (32, long) if height < width else (long, 32)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    expected = bilinear(image, *scaled)[top : top + size[0], left : left + size[1]]
    found = centre_crop(image, size, 32).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_enlarging_is_what_pillow_does(rng):
    """Pillow smooths when it shrinks; enlarging, its bilinear filter is the same interpolation."""
    image = rng.uniform(0, 255, (20, 30, 3)).astype(np.float32)
    wide = longer(20, 30, 64)
    planes = [Image.fromarray(image[..., channel]) for channel in range(3)]
    enlarged = [np.asarray(plane.resize((wide, 64), Image.Resampling.BILINEAR)) for plane in planes]
    left = (wide - 64) // 2
    expected = np.stack(enlarged, -1)[:, left : left + 64]
    np.testing.assert_allclose(centre_crop(image, (64, 64), 64), expected, atol=0.01)


def test_random_crop_is_a_window_of_the_scaled_image_turned_and_mirrored():
    """Position and scale are read off a ramp; the window from there is the whole crop."""
    image = ramp(90, 120)
    image[..., 0] = image[..., 1] = image[..., 2] = image[..., 0] / 2 + image[..., 1] / 3  # no hue
    seen = set()
    for seed in range(6):
        found = random_crop(image, (seed, 5), (32, 32), (40, 48)).numpy()
        candidates = [
            (side, top, left, mirrored)
            for side in range(40, 49)
            for scaled in [bilinear(image, side, longer(90, 120, side))]
            for top in range(side - 31)
            for left in range(scaled.shape[1] - 31)
            for mirrored in (False, True)
            if np.allclose(
                scaled[top : top + 32, left : left + 32][:, :: -1 if mirrored else 1],
                found,
                atol=0.01,
            )
        ]
        assert len(candidates) == 1
        seen.add(candidates[0])
    assert len(seen) == 6


def windows(image, count, sides=(18, 24)):
    """`count` random 16x16 windows of an image scaled to `sides`."""

    @tf.function
    def crops(seeds):
        one = tf.TensorSpec((16, 16, 3), tf.float32)

        def crop(seed):
            return random_crop(image, seed, (16, 16), sides)

        return tf.map_fn(crop, seeds, fn_output_signature=one)

    return crops(np.stack([np.arange(count), np.full(count, 3)], -1).astype(np.int32)).numpy()


@pytest.mark.parametrize("axis", [0, 1])
def test_every_scale_and_every_position_are_drawn_and_no_other(axis):
    """Read off grey ramps, which hue leaves alone, along the rows and along the columns."""
    rows, columns = np.mgrid[:60, :80].astype(np.float32)
    image = np.repeat((rows, columns)[axis][..., None], 3, -1)
    found = windows(tf.constant(image), 3000)[..., 0]
    line = found[:, :, 0] if axis == 0 else found[:, 0]
    if axis == 1:
        mirrored = line[:, -1] < line[:, 0]
        assert abs(mirrored.mean() - 0.5) < 0.04
        line[mirrored] = line[mirrored][:, ::-1]
    old = image.shape[axis]
    scaled = old * 15 / (line[:, -1] - line[:, 0])
    np.testing.assert_allclose(scaled, np.round(scaled), atol=0.01)
    scaled = np.round(scaled).astype(int)
    lengths = [side if axis == 0 else longer(60, 80, side) for side in range(18, 25)]
    share = np.array([(scaled == length).mean() for length in lengths])
    assert share.sum() == 1  # no other scale
    assert np.abs(share - 1 / 7).max() < 0.03
    corner = (line[:, 0] + 0.5) * scaled / old - 0.5
    np.testing.assert_allclose(corner, np.round(corner), atol=0.01)
    for length in lengths:
        drawn = np.round(corner[scaled == length]).astype(int)
        assert set(drawn) == set(range(length - 16 + 1))


def test_top_and_left_are_drawn_independently():
    """At one scale, 20x27: five tops and twelve lefts, read off ramps of the same seeds."""
    corners = []
    for axis in (0, 1):
        line = np.mgrid[:60, :80][axis].astype(np.float32)
        found = windows(tf.constant(np.repeat(line[..., None], 3, -1)), 3000, (20, 20))[..., 0]
        first = found.min((1, 2))  # the corner, mirrored or not
        corners.append(np.round((first + 0.5) * (20, 27)[axis] / (60, 80)[axis] - 0.5).astype(int))
    counts, _, _ = np.histogram2d(*corners, bins=(range(6), range(13)))
    assert counts.sum() == 3000
    assert counts.min() > 20  # 50 expected
    assert counts.max() < 90


def test_hue_turns_a_colour_as_colorsys_does():
    """Saturation and value stay; the turn fills +-.06 of a circle."""
    colour = np.array([180.0, 90.0, 40.0], np.float32)
    image = np.tile(colour, (20, 20, 1))
    hue, saturation, value = colorsys.rgb_to_hsv(*(colour.astype(float) / 255))
    turns = []
    for seed in range(150):
        found = random_crop(image, (7, seed), (16, 16), (16, 20)).numpy()
        assert np.ptp(found, axis=(0, 1)).max() < 1e-3
        h, s, v = colorsys.rgb_to_hsv(*(found[0, 0].astype(float) / 255))
        np.testing.assert_allclose((s, v), (saturation, value), atol=1e-5)
        turns.append((h - hue + 0.5) % 1 - 0.5)
    assert np.abs(turns).max() <= 0.06 + 1e-6
    assert max(turns) > 0.055
    assert min(turns) < -0.055
    assert abs(np.mean(turns)) < 0.01


def test_grey_stays_grey(rng):
    image = np.repeat(rng.uniform(0, 255, (30, 30, 1)), 3, -1).astype(np.float32)
    found = random_crop(image, (1, 2), (16, 16), (20, 24)).numpy()
    np.testing.assert_allclose(found, found[..., :1] + np.zeros(3), atol=1e-4)


def test_the_same_seed_gives_the_same_pixels_in_a_graph_and_outside(rng):
    image = rng.integers(0, 256, (30, 44, 3)).astype(np.uint8)
    one = random_crop(image, (3, 4), (16, 16), (18, 30)).numpy()
    np.testing.assert_array_equal(one, random_crop(image, (3, 4), (16, 16), (18, 30)))
    graph = tf.function(lambda pixels, seed: random_crop(pixels, seed, (16, 16), (18, 30)))
    np.testing.assert_allclose(one, graph(image, tf.constant([3, 4])), atol=1e-3)
    assert not np.array_equal(one, random_crop(image, (3, 5), (16, 16), (18, 30)))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_every_shape_gives_the_size_and_the_range(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for found in (
        random_crop(image, (seed, 0), (9, 12), (12, 20)),
        centre_crop(image, (9, 12), 12),
    ):
        assert found.shape == (9, 12, 3)
        assert np.isfinite(found).all()
        assert np.min(found) >= 0
        assert np.max(found) <= 255


def test_a_long_thin_image_needs_no_long_thin_copy():
    """Scaled whole, it would take 62 GB."""
    image = np.tile(np.arange(20_000) % 251, (1, 1))[..., None].repeat(3, -1).astype(np.uint8)
    assert random_crop(image, (0, 1)).shape == (256, 256, 3)
    assert centre_crop(image).shape == (256, 256, 3)


def test_a_crop_that_cannot_fit_is_refused():
    image = np.zeros((300, 300, 3), np.uint8)
    with pytest.raises(ValueError, match=r"crop of 224x224 does not fit .* to 200"):
        centre_crop(image, (224, 224), 200)
    with pytest.raises(ValueError, match="at least 224"):
        random_crop(image, (0, 0), (100, 224), (200, 300))
    with pytest.raises(ValueError, match="from 300 down to 250"):
        random_crop(image, (0, 0), (100, 224), (300, 250))
    with pytest.raises(ValueError, match="at least one pixel"):
        centre_crop(image, (0, 224), 256)
