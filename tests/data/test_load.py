"""Data sets: ranges, splits, provenance, and what is said where they are missing."""

import hashlib

import numpy as np
import pytest
from helpers import small_imagenet
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


@pytest.mark.slow  # reads 70,000 images
def test_mnist_as_in_the_paper(data_dir):
    train, validation, test = (
        data.load("mnist", name, data_dir=data_dir) for name in ("train", "validation", "test")
    )
    assert [len(train), len(validation), len(test)] == [50_000, 10_000, 10_000]
    # widely published statistics of the 60,000 and of the test labels
    pixels = np.concatenate([train.images, validation.images])
    assert pixels.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std(dtype=np.float64) == pytest.approx(0.3081, abs=1e-4)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(test.labels), counts)
    assert test.provenance.version == "3.0.1"


def test_cifar10_is_split_in_its_order(data_dir):
    """Against the rows that tensorflow-datasets itself gives."""
    import tensorflow_datasets as tfds

    validation, test = (
        data.load("cifar10", name, data_dir=data_dir) for name in ("validation", "test")
    )
    folder = f"{data_dir}/tensorflow_datasets"
    rows = {
        which: list(tfds.load("cifar10", split=which, data_dir=folder, download=False))
        for which in ("train[45000:45003]", "train[-3:]", "test[:3]")
    }
    for split, place, which in [
        (validation, slice(0, 3), "train[45000:45003]"),
        (validation, slice(-3, None), "train[-3:]"),
        (test, slice(0, 3), "test[:3]"),
    ]:
        pixels = np.stack([row["image"] for row in rows[which]])
        np.testing.assert_array_equal(split.images[place], pixels.astype(np.float32) / 255)
        np.testing.assert_array_equal(split.labels[place], [row["label"] for row in rows[which]])
    assert (len(validation), len(test)) == (5000, 10_000)
    assert test.images.shape[1:] == (32, 32, 3)
    assert (test.images.min(), test.images.max()) == (0, 1) == test.value_range
    np.testing.assert_array_equal(np.bincount(test.labels), np.full(10, 1000))
    assert test.provenance.version == "3.0.2"


@pytest.mark.slow
def test_cifar10_training_set(data_dir):
    """Widely published channel statistics, over all 50,000.

    They are those of lossless pixels. Where the folder holds JPEG ones, red and blue were seen to
    be .005 darker; another order of channels or another scale would be .04 off.
    """
    splits = [data.load("cifar10", name, data_dir=data_dir) for name in ("train", "validation")]
    assert [len(split) for split in splits] == [45_000, 5000]
    sizes = np.bincount(np.concatenate([split.labels for split in splits]))
    np.testing.assert_array_equal(sizes, np.full(10, 5000))
    # added up by split, not copied: they are large
    first = sum(split.images.sum((0, 1, 2), dtype=np.float64) for split in splits)
    second = sum(np.square(split.images).sum((0, 1, 2), dtype=np.float64) for split in splits)
    count = 50_000 * 32 * 32
    mean, deviation = first / count, np.sqrt(second / count - (first / count) ** 2)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=6e-3)
    np.testing.assert_allclose(deviation, [0.2470, 0.2435, 0.2616], atol=5e-3)


def test_the_environment_names_the_folder(data_dir, monkeypatch):
    monkeypatch.setenv("TFROBUST_DATA_DIR", str(data_dir))
    explicit = data.load("mnist", "test", data_dir=f"{data_dir}/tensorflow_datasets")
    assert data.load("mnist", "test").provenance == explicit.provenance


def test_not_prepared_says_the_two_ways(tmp_path):
    with pytest.raises(data.DataNotFoundError) as error:
        data.load("mnist", "train", data_dir=tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    assert 'tfrobust.data.load("mnist", download=True)' in message
    assert "TFROBUST_DATA_DIR" in message


def test_unknown_names():
    there = "cifar10, digits, fashion_mnist, imagenet, iris, kim_toy, mnist, spambase, wine"
    with pytest.raises(ValueError, match=f"unknown data set 'cifar'; there are {there}"):
        data.load("cifar")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        data.load("digits", "dev")


def test_options_of_imagenet_are_refused_elsewhere():
    with pytest.raises(ValueError, match="digits takes no preprocess: these are options of imagen"):
        data.load("digits", preprocess=lambda images: images)
    with pytest.raises(ValueError, match="iris takes no limit, size"):
        data.load("iris", size=(4, 4), limit=3)
    with pytest.raises(ValueError, match="imagenet cannot be downloaded"):
        data.load("imagenet", download=True)
    with pytest.raises(TypeError, match="colour"):
        data.load("imagenet", colour=3)


def test_imagenet_is_a_stream(tmp_path, rng):
    small_imagenet.write_tree(tmp_path, small_imagenet.pictures(rng, 6))
    options = {**small_imagenet.SMALL, "preprocess": lambda images: images / 255}
    stream = data.load("imagenet", "train", data_dir=tmp_path, value_range=(0, 1), **options)
    assert isinstance(stream, data.imagenet.ImageStream)
    images, labels = stream.take(4).arrays
    assert images.shape == (4, 16, 16, 3)
    assert images.max() <= 1
    plain = data.imagenet.load("train", data_dir=tmp_path, **small_imagenet.SMALL).take(4)
    np.testing.assert_allclose(images, plain.images / 255, rtol=1e-6)
    np.testing.assert_array_equal(labels, plain.labels)
