"""Cohorts one after another, and on a real Dask scheduler with worker processes."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.cohort_member import exit_hard, fail, train

from tfrobust.distribution import SchedulerError, map_cohort
from tfrobust.distribution import dask as cohorts

HERE = Path(__file__).parents[1]


def members(folder, count=3, pause=0.0):
    return [
        {"folder": str(folder / f"m{k}"), "weight": 10.0**k, "epochs": 4, "pause": pause}
        for k in range(count)
    ]


class Cluster:
    """A scheduler and workers as processes of their own, started as users start them."""

    def __init__(self, workers):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        environment = {**os.environ, "PYTHONPATH": str(HERE), "TF_CPP_MIN_LOG_LEVEL": "3"}

        def launch(*words):
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        self.scheduler = launch(
            "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
        )
        one = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        self.workers = [launch("worker", self.address, *one) for _ in range(workers)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def test_what_other_threads_draw_changes_no_seeded_network():
    def weights(_):
        keras.utils.set_random_seed(3)
        seen = []
        for _ in range(50):
            layer = keras.layers.Dense(3)
            layer.build((None, 2))
            seen.append(keras.ops.convert_to_numpy(layer.kernel))
            time.sleep(1e-3)  # lets the other thread draw
        return np.stack(seen)

    quiet, stop, drawn = weights(None), threading.Event(), []

    def draw():
        while not stop.is_set():
            drawn.append(random.randbytes(4))

    before = random.randint
    other = threading.Thread(target=draw)
    other.start()
    try:
        disturbed = weights(None)
        kept = cohorts._alone(weights, None)
    finally:
        stop.set()
        other.join()
    assert (disturbed != quiet).any()  # the fault is real
    np.testing.assert_array_equal(kept, quiet)
    assert random.randint is before
    assert len(set(drawn)) > 1
    with pytest.raises(ValueError, match="has no data"):
        cohorts._alone(fail, 1)
    assert random.randint is before


def test_one_after_another(tmp_path):
    results = map_cohort(train, members(tmp_path, 2))
    assert [result["pid"] for result in results] == [os.getpid()] * 2
    assert map_cohort(len, []) == []
    with pytest.raises(ValueError, match="member 1 has no data"):
        map_cohort(fail, [1])


def test_a_killed_worker_loses_its_unfinished_epoch_only(tmp_path):
    alone = map_cohort(train, members(tmp_path / "alone"))
    with Cluster(2) as cluster:
        folder = tmp_path / "cluster"
        folder.mkdir()
        pids = {process.pid: process for process in cluster.workers}

        def kill_one():
            """As soon as some member has finished an epoch, kill the worker that trains it."""
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                for log in sorted(folder.glob("*.epochs")):
                    lines = log.read_text().split("\n")[:-1]
                    if lines and len(lines) < 3:
                        pid = int(lines[-1].split()[0])
                        os.kill(pid, signal.SIGKILL)
                        return log, len(lines)
                time.sleep(0.02)
            raise AssertionError("no member was training")

        killed = []
        watcher = threading.Thread(target=lambda: killed.append(kill_one()))
        watcher.start()
        results = map_cohort(train, members(folder, pause=0.7), scheduler=cluster.address)
        watcher.join()
        log, before = killed[0]
        assert sum(process.poll() is not None for process in pids.values()) == 1
    for one, other in zip(alone, results, strict=True):
        np.testing.assert_array_equal(one["weights"], other["weights"])
        assert other["pid"] in pids
    # the second worker went on after the epochs that the first had finished
    epochs = [int(line.split()[1]) for line in log.read_text().split("\n")[:-1]]
    assert epochs == [1, 2, 3, 4]
    assert len({line.split()[0] for line in log.read_text().split("\n")[:-1]}) == 2
    assert before in (1, 2)
    assert len(log.with_suffix(".log").read_text().split()) == 2


def test_faults_of_a_member_and_of_its_workers(tmp_path):
    with Cluster(2) as cluster:
        with pytest.raises(ValueError, match="member 2 has no data"):
            map_cohort(fail, [2], scheduler=cluster.address)
        with pytest.raises(SchedulerError, match="1 workers were lost with the same member"):
            map_cohort(exit_hard, [0], scheduler=cluster.address, lost_workers=0)


def test_a_scheduler_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    with pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {address} within 1 s"):
        map_cohort(train, [{}], scheduler=address, timeout=1)
    with pytest.raises(SchedulerError, match="no Dask scheduler answers at nonsense"):
        map_cohort(train, [{}], scheduler="nonsense", timeout=1)


def test_a_scheduler_without_workers():
    with Cluster(0) as cluster, pytest.raises(SchedulerError, match=r"has no workers after"):
        map_cohort(train, [{}], scheduler=cluster.address, timeout=8)
