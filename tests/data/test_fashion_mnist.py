"""Fashion-MNIST on a stub: the real data are not part of the tests.

The reader is tensorflow-datasets' own, on a folder that it prepared of 30 random images under the
data set's name; that folder is too small for the split at 50,000, which is tested on a stub of the
reader instead.
"""

import numpy as np
import pytest

from tfrobust import data
from tfrobust.data import loaders

COUNT = 30


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder, and its images and labels in the order of writing."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 28, 28, 1), dtype=np.uint8)
    labels = rng.permutation(np.arange(COUNT) % 10)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    with tfds.core.registered.skip_registration():

        class Stub(tfds.core.GeneratorBasedBuilder):
            name = "fashion_mnist"
            VERSION = tfds.core.Version("3.0.1")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager):
                return {"test": self._generate_examples()}

            def _generate_examples(self):
                for row in range(COUNT):
                    yield row, {"image": images[row], "label": labels[row]}

    root = tmp_path_factory.mktemp("fashion")
    Stub(data_dir=root / "tensorflow_datasets").download_and_prepare()
    return root, images, labels


def by_pixels(images, labels):
    return {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


def test_what_tensorflow_datasets_prepared_is_read(prepared):
    root, images, labels = prepared
    test = data.load("fashion_mnist", "test", data_dir=root)
    assert (test.images.dtype, test.labels.dtype) == (np.float32, np.int32)
    assert (test.classes, test.value_range) == (10, (0.0, 1.0))
    # the writer shuffles
    pixels = images.astype(np.float32) / 255
    assert by_pixels(test.images, test.labels) == by_pixels(pixels, labels)
    assert test.provenance.name == "fashion_mnist"
    assert test.provenance.source == "tensorflow-datasets fashion_mnist, test"
    assert (test.provenance.version, test.provenance.examples) == ("3.0.1", COUNT)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_splits_are_those_of_mnist(name, monkeypatch):
    read = []

    def stub(*arguments):
        read.append(arguments)
        return np.full((2, 28, 28, 1), 255, np.uint8), np.array([3, 9]), "3.0.1"

    monkeypatch.setattr(loaders, "_from_tfds", stub)
    for split in ("train", "validation", "test"):
        loaded = data.load(name, split, data_dir="folder", download=True)
        assert (loaded.images == 1).all()
        assert loaded.provenance.split == split
    assert read == [
        (name, split, "folder", True) for split in ("train[:50000]", "train[50000:]", "test")
    ]


def test_not_prepared_says_the_two_ways(tmp_path):
    with pytest.raises(data.DataNotFoundError) as error:
        data.load("fashion_mnist", data_dir=tmp_path)
    assert 'tfrobust.data.load("fashion_mnist", download=True)' in str(error.value)
    assert "tensorflow_datasets/fashion_mnist" in str(error.value)
    assert "TFROBUST_DATA_DIR" in str(error.value)
