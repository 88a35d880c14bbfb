"""Several devices and workers against one process on the same global batches."""

import functools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import train_together
from helpers.ports import reserved_addresses
from helpers.processes import Child

from tfrobust import distribution
from tfrobust.distribution import WorkerTimeoutError
from tfrobust.distribution.strategies import _cluster
from tfrobust.training import checkpoints


def start(folder, *, workers=None, index=0, epochs=3, **options):
    """One process of a training, of several where `workers` has their addresses."""
    kind, config = "one", None
    if workers:
        task = {"type": "worker", "index": index}
        kind, config = "auto", json.dumps({"cluster": {"worker": workers}, "task": task})
    train = functools.partial(train_together.main, kind, folder, epochs, **options)
    return Child(train, TF_CONFIG=config)


def finish(*processes, timeout=150):
    try:
        for process in processes:
            process.finished(timeout)
    finally:
        for process in processes:
            process.kill()


def final(folder, index=0):
    with np.load(Path(folder) / f"final-{index}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def difference(one, other, keys=None):
    keys = keys or [key for key in one if key.startswith("w")]
    return max(np.abs(one[key].astype(float) - other[key]).max() for key in keys)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, one device; penalty and batch normalisation included."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder))
    return final(folder)


def compare(alone, other, what):
    weights = difference(alone, other)
    measures = difference(alone, other, ["robustness", "alignment", "scores"])
    print(f"{what}: largest difference of a weight {weights:.1e}, of a measure {measures:.1e}")
    assert weights < 1e-5
    assert measures < 1e-4
    np.testing.assert_array_equal(alone["runner_up"], other["runner_up"])
    np.testing.assert_array_equal(alone["runner_up"], other["sketched"])
    assert other["replicas"] == 2


@pytest.mark.slow  # as of two replicas in tests/training
def test_two_devices_end_with_the_weights_of_one(alone, tmp_path):
    finish(start(tmp_path, devices=2))
    compare(alone, final(tmp_path), "two virtual devices")


def compare_both(alone, folder, what):
    for index in range(2):
        compare(alone, final(folder, index), f"worker {index} of two{what}")
    assert [bool(final(folder, k)["chief"]) for k in range(2)] == [True, False]
    assert difference(final(folder, 0), final(folder, 1)) == 0
    assert [final(folder, k)["nothing"].shape for k in range(2)] == [(4, 0)] * 2


def test_two_workers_end_with_the_weights_of_one(alone, tmp_path):
    workers = reserved_addresses(2)
    finish(*(start(tmp_path, workers=workers, index=k) for k in range(2)))
    compare_both(alone, tmp_path, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"jit": True, "statistics": "frozen"}, 1e-5), ({"policy": "mixed_float16"}, 1e-2)],
)
def test_xla_and_half_precision_on_two_devices_and_hosts(tmp_path, options, tolerance):
    finish(start(tmp_path / "one", **options))
    finish(start(tmp_path / "devices", **options, devices=2))
    workers = reserved_addresses(2)
    finish(*(start(tmp_path / "workers", **options, workers=workers, index=k) for k in range(2)))
    one = final(tmp_path / "one")
    for name in ("devices", "workers"):
        worst = difference(one, final(tmp_path / name))
        print(f"{options}, two {name}: largest difference of a weight {worst:.1e}")
        assert worst < tolerance


@pytest.mark.slow  # four processes; a worker of a cohort is killed in the usual tests
def test_a_killed_worker_is_reported_and_both_resume_to_the_weights_of_one(alone, tmp_path):
    workers = reserved_addresses(2)
    both = [start(tmp_path, pause=1.5, workers=workers, index=k) for k in range(2)]
    try:
        deadline = time.monotonic() + 120
        while checkpoints.newest(tmp_path) is None:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in both), both[0].printed()
            time.sleep(0.05)
        both[1].kill()
        assert both[0].wait(90) != 0
        errors = both[0].printed()
        assert "WorkerLostError: a worker of 2 was lost" in errors
        assert "training resumes from the last checkpoint" in errors
    finally:
        for process in both:
            process.kill()
    assert not list(tmp_path.glob("final-*.npz"))
    begun = checkpoints.read(checkpoints.newest(tmp_path))[0]["records"]
    assert 1 <= len(begun) < 3
    workers = reserved_addresses(2)
    finish(*(start(tmp_path, workers=workers, index=k) for k in range(2)))
    compare_both(alone, tmp_path, ", one killed, both restarted")
    after = checkpoints.read(checkpoints.newest(tmp_path))[0]["records"]
    assert after[: len(begun)] == begun


@pytest.mark.slow
def test_workers_that_see_different_folders(tmp_path):
    finish(
        *(
            start(tmp_path / "a", workers=w, index=k, epochs=1)
            for w in [reserved_addresses(2)]
            for k in (0, 1)
        )
    )
    workers = reserved_addresses(2)
    both = [
        start(tmp_path / name, workers=workers, index=k, epochs=2) for k, name in enumerate("ab")
    ]
    for process in both:
        assert process.wait(90) != 0
        errors = process.printed()
        assert "workers see different checkpoints" in errors
        assert "on storage that all workers share" in errors


def test_a_worker_that_never_comes(monkeypatch):
    config = {"cluster": {"worker": reserved_addresses(2)}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    began = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match=r"worker 1 at 127.0.0.1:\d+ of 2 did not connect"):
        distribution.strategy("auto", timeout=0.5)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
    ],
)
def test_a_malformed_tf_config(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG is malformed"):
        distribution.strategy()


def test_chief_and_workers_in_one_order(monkeypatch):
    jobs = {"worker": ["w0:1", "w1:1"], "chief": ["c:1"]}
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": task}))
    found = _cluster()
    assert found.addresses == ("c:1", "w0:1", "w1:1")
    assert found.index == 2


def test_the_hosts_of_a_slurm_step(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    variables = {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "gpu[07-09]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
        "SLURM_LOCALID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = _cluster()
    assert found.addresses == ("gpu07:8888", "gpu08:8888", "gpu09:8888")
    assert found.index == 2


def test_strategies_of_one_host(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    one = distribution.strategy("auto")
    assert isinstance(one, tf.distribute.OneDeviceStrategy)
    with pytest.raises(ValueError, match='kind must be "auto"'):
        distribution.strategy("all")
    with pytest.raises(ValueError, match="no other workers: set TF_CONFIG"):
        distribution.strategy("multi_worker")
