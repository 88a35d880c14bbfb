"""A small ImageNet in each of its layouts on disk."""

import numpy as np
import pytest
from helpers import small_imagenet
from helpers.small_imagenet import COUNT


@pytest.fixture(scope="module")
def made():
    return small_imagenet.pictures(np.random.default_rng(0), COUNT)


@pytest.fixture(scope="module")
def tree(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    small_imagenet.write_tree(root, made)
    return root


@pytest.fixture(scope="module")
def records(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    small_imagenet.write_tfrecords(root, made)
    return root


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    small_imagenet.write_tfds(root, made)
    return root
