"""Data sets: ranges, splits, provenance, and what is said where they are missing."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tfrobust import data


def test_digits_are_whole_disjoint_and_in_range():
    splits = [data.load("digits", name) for name in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [1197, 200, 400]
    for split in splits:
        assert split.images.shape[1:] == (28, 28, 1)
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        assert split.images.min() >= 0
        assert split.images.max() <= 1
        assert set(split.labels) == set(range(10))
    labels = np.concatenate([split.labels for split in splits])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(load_digits().target))
    hashes = {image.tobytes() for split in splits for image in split.images}
    assert len(hashes) == len({image.tobytes() for image in load_digits().images})


def test_digits_are_the_bundled_ones_scaled_up():
    """Each block of the enlarged image averages to about its pixel."""
    split = data.load("digits", "test")
    order = np.random.default_rng(0).permutation(1797)[1397:]
    small = load_digits().images[order] / 16
    shrunk = split.images[:, :, :, 0].reshape(400, 4, 7, 4, 7).mean(axis=(2, 4))
    coarse = small.reshape(400, 4, 2, 4, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(shrunk, coarse, atol=0.13)
    np.testing.assert_array_equal(split.labels, load_digits().target[order])


def test_loading_twice_gives_the_same():
    one, other = data.load("digits", "test"), data.load("digits", "test")
    assert one.provenance == other.provenance
    digest = hashlib.sha256(one.images.tobytes() + one.labels.tobytes()).hexdigest()
    assert one.provenance.sha256 == digest


def test_take():
    split = data.load("digits", "test").take(7)
    assert len(split) == split.provenance.examples == 7
    assert split.provenance.sha256 != data.load("digits", "test").provenance.sha256
    with pytest.raises(ValueError, match=r"1\.\.7, got 8"):
        split.take(8)


def test_mnist_as_in_the_paper(data_dir):
    train, validation, test = (
        data.load("mnist", name, data_dir) for name in ("train", "validation", "test")
    )
    assert [len(train), len(validation), len(test)] == [50_000, 10_000, 10_000]
    # widely published statistics of the 60,000 and of the test labels
    pixels = np.concatenate([train.images, validation.images])
    assert pixels.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std(dtype=np.float64) == pytest.approx(0.3081, abs=1e-4)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(test.labels), counts)
    assert test.provenance.version == "3.0.1"


def test_the_environment_names_the_folder(data_dir, monkeypatch):
    monkeypatch.setenv("TFROBUST_DATA_DIR", str(data_dir))
    explicit = data.load("mnist", "test", f"{data_dir}/tensorflow_datasets")
    assert data.load("mnist", "test").provenance == explicit.provenance


def test_not_prepared_says_the_two_ways(tmp_path):
    with pytest.raises(data.DataNotFoundError) as error:
        data.load("mnist", "train", tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    assert 'tfrobust.data.load("mnist", download=True)' in message
    assert "TFROBUST_DATA_DIR" in message


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown data set 'cifar'; there are digits, mnist"):
        data.load("cifar")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        data.load("digits", "dev")
