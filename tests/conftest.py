"""Fixtures shared by all tests: seeds, the data folder, small models."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import ctypes
import gc
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import Phase, settings

# graphs that are kept make full collections long: they take place as memory grows, see `_collected`
gc.set_threshold(10_000, 50, 50)
# the first example of a network is traced, which takes longer than the others
settings.register_profile("tfrobust", deadline=None, print_blob=True)
# for seeded faults: that a test fails is enough, the smallest example is not needed
settings.register_profile(
    "first-failure", settings.get_profile("tfrobust"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("TFROBUST_HYPOTHESIS_PROFILE", "tfrobust"))


# seconds for a slow test; the limit of the others ends the whole process of a worker
SLOW_TIMEOUT = 1800
# longest first: with one file per worker at a time, none of them is left for the end
LONGEST = (
    "test_etmann2019_mnist.py",
    "test_peck2017.py",
    "test_kim2019.py",
    "test_vae_gan_training.py",
    "test_adversarial_training.py",
    "test_sketch.py",
    "test_certified.py",
    "test_snippets.py",
    "test_measure.py",
    "test_training.py",
    "test_rank.py",
    "test_derivatives.py",
    "test_logits.py",
    "test_distribution.py",
    "test_weights.py",
    "test_applications.py",
    "test_attack_minimal.py",
    "test_imagenet_stream.py",
    "test_alignment.py",
)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def resident():
    """Bytes of memory of this process; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except FileNotFoundError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# bytes by which a process may grow before models that no test holds any longer are looked for
GROWTH = 150 * 2**20
_collected_at = [0]


@pytest.fixture(autouse=True)
def _collected():
    """Models and graphs are cycles, which would be kept: a worker grew to 2.5 GB.

    Nor does the C library return by itself what large weights have taken.
    """
    yield
    if resident() - _collected_at[0] > GROWTH:
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda padding: 0)(0)
        _collected_at[0] = resident()


@pytest.fixture(autouse=True, scope="module")
def _without_keras_state_of_other_files():
    yield
    keras.backend.clear_session()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def data_dir():
    """The folder of real data sets, or a skip that says what is missing."""
    folder = os.environ.get("TFROBUST_DATA_DIR")
    if not folder:
        pytest.skip("TFROBUST_DATA_DIR names no folder of data sets")
    return folder
