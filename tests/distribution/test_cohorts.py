"""Cohorts one after another, and on a real Dask scheduler with worker processes."""

import contextlib
import os
import random
import signal
import socket
import threading
import time

import keras
import numpy as np
import pytest
from helpers.cohort_member import block, exit_hard, fail, train
from helpers.dask_cluster import DaskCluster
from helpers.ports import reserved_addresses

from tfrobust.distribution import SchedulerError, map_cohort
from tfrobust.distribution import dask as cohorts


def members(folder, count=2, pause=0.0):
    return [
        {"folder": str(folder / f"m{k}"), "weight": 10.0**k, "epochs": 4, "pause": pause}
        for k in range(count)
    ]


def test_what_other_threads_draw_changes_no_seeded_network():
    def weights(_):
        keras.utils.set_random_seed(3)
        seen = []
        for _ in range(15):
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
        kept = cohorts._run_member(weights, None)
    finally:
        stop.set()
        other.join()
    assert (disturbed != quiet).any()  # the fault is real
    np.testing.assert_array_equal(kept, quiet)
    assert random.randint is before
    assert len(set(drawn)) > 1
    with pytest.raises(ValueError, match="has no data"):
        cohorts._run_member(fail, 1)
    assert random.randint is before


def test_one_after_another(tmp_path):
    results = map_cohort(train, members(tmp_path))
    assert [result["pid"] for result in results] == [os.getpid()] * 2
    assert map_cohort(len, []) == []
    with pytest.raises(ValueError, match="member 1 has no data"):
        map_cohort(fail, [1])


def test_a_killed_worker_loses_its_unfinished_epoch_only(tmp_path):
    alone = map_cohort(train, members(tmp_path / "alone"))
    with DaskCluster(2) as cluster:
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
        results = map_cohort(train, members(folder, pause=0.4), scheduler=cluster.address)
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


def test_faults_of_a_member_of_its_workers_and_of_the_scheduler(tmp_path):
    with DaskCluster(2) as cluster:
        address = cluster.address
        with pytest.raises(ValueError, match="member 2 has no data"):
            map_cohort(fail, [2], scheduler=address)
        with pytest.raises(SchedulerError, match="1 workers were lost with the same member, 'm'"):
            map_cohort(exit_hard, ["m"], scheduler=address, lost_workers=0)
        began = time.monotonic()
        with pytest.raises(SchedulerError, match="all workers died, and no new one connected"):
            map_cohort(exit_hard, [{"lambda": 10.0}], scheduler=address, timeout=2)
        assert all(process.wait(10) is not None for process in cluster.workers)
        with pytest.raises(SchedulerError, match=r"has no workers after 1 s.*one per GPU"):
            map_cohort(train, [{}], scheduler=address, timeout=1)
        assert time.monotonic() - began < 60

        cluster.workers.append(cluster.add_worker())
        begun = tmp_path / "begun"

        def kill_scheduler():
            deadline = time.monotonic() + 60
            while not begun.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            cluster.scheduler.kill()

        watcher = threading.Thread(target=kill_scheduler)
        watcher.start()
        with pytest.raises(SchedulerError, match="lost the connection to the scheduler at tcp"):
            map_cohort(block, [str(begun)], scheduler=address, timeout=20)
        watcher.join()
        assert begun.exists()


def test_a_scheduler_out_of_reach():
    (address,) = (f"tcp://{place}" for place in reserved_addresses(1))
    with pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {address} within 1 s"):
        map_cohort(train, [{}], scheduler=address, timeout=1)
    with pytest.raises(SchedulerError, match="no Dask scheduler answers at nonsense"):
        map_cohort(train, [{}], scheduler="nonsense", timeout=1)


@pytest.mark.parametrize(
    "answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20" + bytes(7) + b"\xff" * 32]
)
def test_something_else_listens_at_the_address(answer):
    """It never answers, hangs up, or answers in another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            held = []
            with contextlib.suppress(OSError):  # the server was closed
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    if answer is not None:
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {address} within"):
            map_cohort(train, [{}], scheduler=address, timeout=0.5)
        assert time.monotonic() - began < 10
        server.shutdown(socket.SHUT_RDWR)
