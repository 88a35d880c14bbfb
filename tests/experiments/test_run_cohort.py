"""The MNIST experiment on two workers, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.ports import reserved_addresses
from helpers.small_cohort import ARGUMENTS, assert_same_cohort

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# without dropout, which draws other masks on two devices
SCRIPT = """
import sys
from keras import layers
layers.Dropout = lambda rate: layers.Identity()
from experiments.etmann2019 import mnist
mnist.main(sys.argv[1:])
"""


def launch(folder, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    environment |= {"PYTHONPATH": str(ROOT), **variables}  # experiments run from the checkout
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *ARGUMENTS, "--out", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_workers_write_one_run(tmp_path):
    one, both = tmp_path / "one", tmp_path / "both"
    workers = reserved_addresses(2)

    def config(index):
        task = {"type": "worker", "index": index}
        return json.dumps({"cluster": {"worker": workers}, "task": task})

    alone = launch(one)
    outputs = [alone.communicate(timeout=300)[0]]
    processes = [launch(both, TF_CONFIG=config(index)) for index in range(2)]
    outputs += [process.communicate(timeout=300)[0] for process in processes]
    codes = [process.returncode for process in (alone, *processes)]
    assert codes == [0, 0, 0], [output[-3000:] for output in outputs]
    assert_same_cohort(one, both)
    _, chief, other = outputs
    assert "report:" in chief
    assert "report:" not in other  # only the chief writes and speaks
    assert "lambda 10: training" not in other
    assert (both / "report.html").is_file()
