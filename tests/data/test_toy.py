"""Kim 2019's two Gaussians against the stated moments and the released notebook's draws."""

import hashlib

import numpy as np
import pytest

from tfrobust import data
from tfrobust.errors import InputError

MEANS = np.array([[1.2, 0.1], [-1.2, -0.1]])
COVARIANCE = np.array([[0.1, -0.01], [-0.01, 0.002]])


def slope_of(split):
    """What undoes the rescaling: the first coordinates of the classes' means lie 2.4 apart."""
    first, second = (split.images[split.labels == label, 0].mean() for label in (0, 1))
    return 2.4 / np.float64(first - second)


def notebook(seed, count):
    """Unscaled points of both classes as NumPy's global generator draws them."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        draws = [
            np.random.multivariate_normal(mean, COVARIANCE, count)  # noqa: NPY002
            for mean in MEANS
        ]
        points = np.concatenate(draws)
        order = np.column_stack([np.zeros((2 * count, 2)), np.arange(2 * count)])
        np.random.shuffle(order)  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return points, order[:, 2].astype(int)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_training_split_is_the_notebooks(seed):
    points, order = notebook(seed, 3000)
    low, high = points.min(), points.max()
    scaled = (points - low) / (high - low) * 2 - 1
    split = data.kim_toy(seed=seed)
    np.testing.assert_array_equal(split.images, scaled[order].astype(np.float32))
    np.testing.assert_array_equal(split.labels, order >= 3000)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("seed", [0, 1])
def test_moments_are_the_stated_ones(name, seed):
    """Within five standard errors, after the one scale of both axes is undone."""
    split = data.kim_toy(name, seed=seed)
    points = slope_of(split) * split.images.astype(np.float64)
    classes = [points[split.labels == label] for label in (0, 1)]
    assert [len(rows) for rows in classes] == [3000, 3000]
    first, second = (rows.mean(axis=0) for rows in classes)
    # of a mean; what the slope rests on is known to sqrt(2) times that of the first coordinate
    error = np.sqrt(np.diag(COVARIANCE) / 3000)
    np.testing.assert_allclose((first - second)[1], 0.2, atol=5 * np.sqrt(2) * error[1])
    # one shift for both axes: the point between the means stays on the diagonal
    middle = (first + second) / 2
    assert abs(middle[0] - middle[1]) < 5 * np.hypot(*error) / np.sqrt(2)
    variances = np.diag(COVARIANCE)
    error = np.sqrt((np.outer(variances, variances) + COVARIANCE**2) / 3000)
    for rows in classes:
        np.testing.assert_array_less(np.abs(np.cov(rows.T) - COVARIANCE), 5 * error)


def test_one_scale_for_both_axes():
    split = data.kim_toy()
    x = split.images
    assert (x.min(), x.max()) == (-1, 1)
    # axes that were rescaled one by one would both reach the ends
    assert np.abs(x[:, 1]).max() < 0.2
    low_variance = data.kim_toy_low_variance_direction()
    for label in (0, 1):
        points = x[split.labels == label].astype(np.float64)
        axes = np.linalg.eigh(np.cov(points.T))[1]
        cosine = abs(axes[:, 0] @ low_variance)
        assert np.degrees(np.arccos(min(cosine, 1))) < 1
        # a straight line between the classes is far from the long axis of either
        assert points[:, 0].mean() * (1 - 2 * label) > 0.4


def test_low_variance_direction():
    direction = data.kim_toy_low_variance_direction()
    assert direction.shape == (2,)
    assert np.linalg.norm(direction) == pytest.approx(1)
    # the smaller root of (.1 - v) (.002 - v) = .0001
    smaller = (0.102 - np.sqrt(0.102**2 - 4e-4)) / 2
    np.testing.assert_allclose(COVARIANCE @ direction, smaller * direction, atol=1e-15)
    assert direction[1] > 0.99


def test_splits_share_no_point_and_the_scale():
    """Also where few points make it likely that others fall outside."""
    for seed in range(20):
        splits = [
            data.kim_toy(name, seed=seed, count=30) for name in ("train", "validation", "test")
        ]
        for split in splits:
            assert np.abs(split.images).max() <= 1
            np.testing.assert_array_equal(np.bincount(split.labels), [30, 30])
        points = np.concatenate([split.images for split in splits])
        assert len(np.unique(points, axis=0)) == len(points)
    slopes = [slope_of(data.kim_toy(name)) for name in ("train", "validation", "test")]
    np.testing.assert_allclose(slopes, slopes[0], rtol=0.02)


def test_as_a_data_set():
    split = data.load("kim_toy", "test")
    assert (split.images.shape, split.images.dtype) == ((6000, 2), np.float32)
    assert (split.labels.dtype, split.classes) == (np.int32, 2)
    assert split.value_range == (-1.0, 1.0)
    assert split.provenance == data.kim_toy("test", seed=0, count=3000).provenance
    assert split.provenance.split == "test"
    assert split.provenance.version == "seed 0, 3000 points per class"
    digest = hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()
    assert split.provenance.sha256 == digest
    # in random order, and the global generator is left alone
    assert 0.45 < np.mean(split.labels[:-1] != split.labels[1:]) < 0.55
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    other = data.kim_toy("test", seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert other.provenance.sha256 != digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev'; there are train, validation, test"),
        ({"count": 0}, "count must be a whole number of at least 1"),
        ({"count": 2.5}, "count must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"seed": 2**32}, r"seed must be below 2\^32"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        data.kim_toy(**settings)
    with pytest.raises(ValueError, match="kim_toy takes no seed"):
        data.load("kim_toy", seed=1)
