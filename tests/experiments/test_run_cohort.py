"""The MNIST experiment on two workers, against one process."""

import json

import pytest
from helpers.ports import reserved_addresses
from helpers.processes import Child
from helpers.small_cohort import ARGUMENTS, assert_same_cohort

pytestmark = pytest.mark.slow


def run(folder):
    """Without dropout, which draws other masks on two devices."""
    import keras

    from experiments.etmann2019 import mnist

    keras.layers.Dropout = lambda rate: keras.layers.Identity()
    mnist.main([*ARGUMENTS, "--out", str(folder)])


def test_two_workers_write_one_run(tmp_path):
    one, both = tmp_path / "one", tmp_path / "both"
    Child(run, one, TF_CONFIG=None).finished(300)
    workers = reserved_addresses(2)

    def config(index):
        task = {"type": "worker", "index": index}
        return json.dumps({"cluster": {"worker": workers}, "task": task})

    children = [Child(run, both, TF_CONFIG=config(index)) for index in range(2)]
    chief, other = (child.finished(300) for child in children)
    assert_same_cohort(one, both)
    assert "report:" in chief
    assert "report:" not in other  # only the chief writes and speaks
    assert "lambda 10: training" not in other
    assert (both / "report.html").is_file()
