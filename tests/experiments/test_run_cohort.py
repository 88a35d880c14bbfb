"""The MNIST experiment on two hosts and on a Dask cluster, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.dask_cluster import DaskCluster
from helpers.ports import reserved_addresses

import reference_models
from experiments.etmann2019 import mnist
from experiments.etmann2019.results import CohortError, Member, read
from tfrobust.commands import run
from tfrobust.errors import InputError

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    *("--preset", "demo", "--lambdas", "10", "1000", "--epochs", "1", "--evaluated", "10"),
    *("--carlini-wagner-steps", "3", "--evaluation-batch", "6", "--carlini-wagner-searches", "2"),
]


def launch(*words, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    environment["PYTHONPATH"] = str(ROOT)  # experiments are run from the checkout
    return subprocess.Popen(
        [sys.executable, *words],
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    mnist.main([*ARGUMENTS, "--out", str(folder)])
    return folder, read(folder)


def same(alone, other):
    """The same members but for rounding, which training can turn into another ReLU pattern."""
    (one_folder, one), (other_folder, two) = alone, other
    assert [member.weight for member in two.members] == [10.0, 1000.0]
    for first, second in zip(one.members, two.members, strict=True):
        place = f"models/lambda-{first.weight:g}/model.keras"
        weights = [
            reference_models.load(folder / place).get_weights()
            for folder in (one_folder, other_folder)
        ]
        for mine, theirs in zip(*weights, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-3)
        for name in ("alignment", "linearized_robustness", "margin"):
            found = second.summary[f"median_{name}"]
            assert found == pytest.approx(first.summary[f"median_{name}"], rel=0.05)
        assert second.distances.keys() == first.distances.keys()
        assert len(second.alignment) == len(first.alignment) == 10


@pytest.mark.slow  # dropout draws other masks on two devices: trained without it for this test
def test_two_hosts_write_one_run(tmp_path, monkeypatch):
    script = (
        "import keras; from keras import layers\n"
        "layers.Dropout = lambda rate: layers.Identity()\n"
        "from experiments.etmann2019 import mnist; import sys\n"
        "mnist.main(sys.argv[1:])"
    )
    one = tmp_path / "one"
    process = launch("-c", script, *ARGUMENTS, "--out", str(one))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    together = tmp_path / "together"
    workers = reserved_addresses(2)

    def config(index):
        task = {"type": "worker", "index": index}
        return json.dumps({"cluster": {"worker": workers}, "task": task})

    both = [
        launch("-c", script, *ARGUMENTS, "--out", str(together), TF_CONFIG=config(k))
        for k in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    same((one, read(one)), (together, read(together)))
    assert "report:" in outputs[0]
    assert "report:" not in outputs[1]  # only the first host writes and speaks
    assert "lambda 10: training" not in outputs[1]
    assert (together / "report.html").is_file()


def test_a_cluster_writes_one_run(alone, tmp_path):
    with DaskCluster(2) as cluster:
        mnist.main([*ARGUMENTS, "--out", str(tmp_path), "--scheduler", cluster.address])
    same(alone, (tmp_path, read(tmp_path)))
    assert (tmp_path / "report.html").is_file()


def test_errors_are_one_line(tmp_path):
    (address,) = reserved_addresses(1)
    arguments = [*ARGUMENTS, "--out", str(tmp_path), "--scheduler", f"tcp://{address}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.common.experiment.TIMEOUT", 1.0)
        with pytest.raises(SystemExit) as stop:
            run(lambda: mnist.main(arguments))
    assert str(stop.value).startswith("error: no Dask scheduler answers at tcp://127.0.0.1:")
    with pytest.raises(InputError, match="--scheduler gives each classifier to one worker"):
        mnist.main([*arguments, "--strategy", "mirrored"])


def test_folders_that_hold_no_finished_cohort(alone, tmp_path):
    with pytest.raises(CohortError, match="holds no run of a cohort"):
        read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"lambdas": [10.0]}}))
    (tmp_path / "cohort.json").write_text(
        json.dumps(
            {
                "name": "digits",
                "lead": "x",
                "members": [{"name": "lambda 10", "folder": "m", "settings": {"lambda": 10.0}}],
            }
        )
    )
    np.savez(tmp_path / "pictures.npz", pictures=alone[1].pictures)
    with pytest.raises(CohortError, match=r"is not finished \(lambda 10\). Run it again"):
        read(tmp_path)


def test_an_attack_on_fewer_images_is_padded(alone):
    member = alone[1].members[0]
    few = {"gradient": member.distances["gradient"].head(4)}
    shorter = Member(member.settings, member.summary, member.alignment, few, member.gradients)
    distance = shorter.distance("gradient")
    assert len(distance) == len(member.alignment)
    np.testing.assert_array_equal(distance[:4], member.distance("gradient")[:4])
    assert np.isnan(distance[4:]).all()
    assert isinstance(shorter.alignment, pd.DataFrame)
