"""Cohorts one after another, and on a real Dask scheduler with worker processes."""

import contextlib
import io
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import cohort_member
from helpers.cohort_member import count, fail, noted, train
from helpers.dask_cluster import DaskCluster
from helpers.ports import refusing_address

from tfrobust.distribution import SchedulerError, map_cohort
from tfrobust.interrupts import Terminated, interruptible


def members(folder, count=2, pause=0.0, epochs=4):
    return [
        {"folder": str(folder / f"m{k}"), "weight": 10.0**k, "epochs": epochs, "pause": pause}
        for k in range(count)
    ]


def eventually(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)
    return value


def is_running(pid):
    """Whether there is a process of that number; one that has ended and is not awaited is none."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def meanwhile(action):
    """`action()` in another thread, whose error is raised at the end of the block."""
    errors = []

    def run():
        try:
            action()
        except AssertionError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not errors, errors


@pytest.fixture(scope="module")
def cluster():
    """Two workers, which outlive the tests that take it."""
    with DaskCluster(2) as started:
        yield started


def test_one_after_another(tmp_path):
    pids = map_cohort(lambda member: os.getpid(), members(tmp_path))
    assert pids == [os.getpid()] * 2
    assert map_cohort(len, []) == []
    with pytest.raises(ValueError, match="member 1 has no data"):
        map_cohort(fail, [1])


def test_workers_do_not_import_tensorflow():
    code = "import sys, tfrobust.member_process; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_every_member_has_a_process_of_its_own(cluster):
    """Python's `random`, which Dask's threads use, and Keras's state are thus a member's alone."""
    results = map_cohort(cohort_member.draw, [3, 4, 3], scheduler=cluster.address)
    workers = {process.pid for process in cluster.workers}
    assert {result["worker"] for result in results} <= workers
    assert len({result["pid"] for result in results} - workers) == 3
    for seed, result in zip([3, 4, 3], results, strict=True):
        alone = random.Random(seed)
        assert result["drawn"] == [alone.random() for _ in range(1000)]
    assert not any(is_running(result["pid"]) for result in results)


def test_errors_of_members(cluster, tmp_path):
    address = cluster.address
    with pytest.raises(ValueError, match="member 2 has no data") as caught:
        map_cohort(fail, [2], scheduler=address)
    assert "On the worker:" in caught.value.__notes__[0]
    assert 'raise ValueError(f"member' in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="OddError: 5 and 1"):
        map_cohort(cohort_member.fail_oddly, [5], scheduler=address)
    with pytest.raises(TypeError, match="pickle"):
        map_cohort(cohort_member.return_a_lock, [1], scheduler=address)
    words = r"1 processes or workers were lost with the same member, 'm' \(ended with exit status 7"
    with pytest.raises(SchedulerError, match=words):
        map_cohort(cohort_member.exit_hard, ["m"], scheduler=address, lost_workers=0)
    killed = [str(tmp_path / "killed")]
    assert map_cohort(cohort_member.be_killed_once, killed, scheduler=address) == ["alive"]
    assert all(process.poll() is None for process in cluster.workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_client_stops_its_members_and_can_resume(cluster, tmp_path, number):
    given = members(tmp_path, pause=0.2, epochs=200)
    folders = [Path(member["folder"]) for member in given]

    def interrupt():
        eventually(lambda: all(noted(folder) for folder in folders))
        signal.pthread_kill(threading.main_thread().ident, number)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        expected = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        with interruptible(), meanwhile(interrupt), pytest.raises(expected):
            map_cohort(count, given, scheduler=cluster.address)
    finally:
        signal.signal(signal.SIGINT, previous)
    processes = {noted(folder)[-1][1] for folder in folders}
    eventually(lambda: not any(map(is_running, processes)), 15)
    done = [len(noted(folder)) for folder in folders]
    shorter = [{**member, "epochs": max(done) + 1, "pause": 0} for member in given]
    assert map_cohort(count, shorter, scheduler=cluster.address) == ["m0", "m1"]
    for folder in folders:
        assert [epoch for _, _, epoch in noted(folder)] == list(range(1, max(done) + 2))


def test_a_scheduler_that_stops_answering(cluster, tmp_path):
    given = members(tmp_path, 1, pause=0.2, epochs=1000)

    def stop():
        eventually(lambda: noted(tmp_path / "m0"))
        os.kill(cluster.scheduler.pid, signal.SIGSTOP)

    began = time.monotonic()
    try:
        words = "the scheduler has not answered for 3 s"
        with meanwhile(stop), pytest.raises(SchedulerError, match=words):
            map_cohort(count, given, scheduler=cluster.address, timeout=3)
    finally:
        os.kill(cluster.scheduler.pid, signal.SIGCONT)
    assert time.monotonic() - began < 60
    process = noted(tmp_path / "m0")[-1][1]
    eventually(lambda: not is_running(process), 15)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_lost_worker_loses_its_unfinished_epoch_only(tmp_path, number):
    given = members(tmp_path, pause=0.3, epochs=8)
    with DaskCluster(2) as cluster:
        workers = {process.pid: process for process in cluster.workers}

        def end_one():
            eventually(lambda: len(noted(tmp_path / "m0")) > 1)
            os.kill(noted(tmp_path / "m0")[-1][0], number)

        with meanwhile(end_one):
            assert map_cohort(count, given, scheduler=cluster.address) == ["m0", "m1"]
        (lost,) = (process for process in workers.values() if process.poll() is not None)
    for name in ("m0", "m1"):
        assert [epoch for _, _, epoch in noted(tmp_path / name)] == list(range(1, 9))
    (first, second) = dict.fromkeys(noted(tmp_path / "m0")[k][:2] for k in range(8))
    assert first[0] == lost.pid
    assert second[0] in workers and second[0] != lost.pid
    assert not is_running(first[1])  # although nothing but its worker was killed


@pytest.mark.slow  # trains; the members of the other tests compute nothing
def test_a_killed_worker_changes_no_weights(tmp_path):
    alone = map_cohort(train, members(tmp_path / "alone"))
    folder = tmp_path / "cluster"
    folder.mkdir()
    with DaskCluster(2) as cluster:

        def kill_one():
            eventually(lambda: noted(folder / "m1"), 120)
            os.kill(noted(folder / "m1")[-1][0], signal.SIGKILL)

        with meanwhile(kill_one):
            results = map_cohort(train, members(folder, pause=0.4), scheduler=cluster.address)
    for one, other in zip(alone, results, strict=True):
        np.testing.assert_array_equal(one["weights"], other["weights"])
    assert [epoch for _, _, epoch in noted(folder / "m1")] == [1, 2, 3, 4]
    assert len({worker for worker, _, _ in noted(folder / "m1")}) == 2


def test_a_cluster_without_workers_and_without_scheduler(tmp_path):
    with DaskCluster(1) as cluster:
        address = cluster.address
        with pytest.raises(SchedulerError, match="all workers died, and no new one connected"):
            map_cohort(cohort_member.kill_worker, [{"lambda": 10.0}], scheduler=address, timeout=2)
        assert cluster.workers[0].wait(10) == -signal.SIGKILL
        began = time.monotonic()
        with pytest.raises(SchedulerError, match=r"has no workers after 1 s.*one per GPU"):
            map_cohort(train, [{}], scheduler=address, timeout=1)
        assert time.monotonic() - began < 20

        cluster.workers.append(cluster.add_worker())
        folder = tmp_path / "m0"

        def kill_scheduler():
            eventually(lambda: noted(folder))
            cluster.scheduler.kill()

        given = members(tmp_path, 1, pause=0.2, epochs=1000)
        words = "lost the connection to the scheduler at tcp"
        written = io.StringIO()  # by Dask, as it does to stderr
        handler = logging.StreamHandler(written)
        logging.getLogger("distributed").addHandler(handler)
        with meanwhile(kill_scheduler), pytest.raises(SchedulerError, match=words):
            map_cohort(count, given, scheduler=address, timeout=20)
        logging.getLogger("distributed").removeHandler(handler)
        assert written.getvalue() == ""
        process = noted(folder)[-1][1]
        eventually(lambda: not is_running(process), 30)


@pytest.mark.slow  # the client is a process that imports TensorFlow
def test_a_lost_scheduler_is_one_line(tmp_path):
    code = (
        "import sys\n"
        "from helpers.cohort_member import count\n"
        "from tfrobust.commands import import_tensorflow, run\n"
        "import_tensorflow()\n"
        "from tfrobust.distribution import map_cohort\n"
        "member = {'folder': sys.argv[2], 'epochs': 1000, 'pause': 0.2}\n"
        "run(lambda: map_cohort(count, [member], scheduler=sys.argv[1], timeout=3))"
    )
    with DaskCluster(1) as cluster:
        client = subprocess.Popen(
            [sys.executable, "-c", code, cluster.address, str(tmp_path / "m0")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: noted(tmp_path / "m0"), 120)
        cluster.scheduler.kill()
        _, errors = client.communicate(timeout=60)
    assert client.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: lost the connection to the scheduler at tcp")


def test_a_scheduler_out_of_reach():
    with refusing_address() as place:
        address = f"tcp://{place}"
        words = f"no Dask scheduler answers at {address} within 1 s"
        with pytest.raises(SchedulerError, match=words):
            map_cohort(train, [{}], scheduler=address, timeout=1)
    with pytest.raises(SchedulerError, match="no Dask scheduler answers at nonsense"):
        map_cohort(train, [{}], scheduler="nonsense", timeout=1)


@pytest.mark.parametrize("protocol", ["tcp", "tls", "ws"])
@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x0a",
        b"\x20" + bytes(7) + b"\xff" * 32,
    ],
    ids=["silent", "closed", "HTTP", "TLS", "binary"],
)
def test_something_else_listens_at_the_address(protocol, answer):
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
        address = f"{protocol}://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {address} within"):
            map_cohort(train, [{}], scheduler=address, timeout=0.5)
        assert time.monotonic() - began < 10
        server.shutdown(socket.SHUT_RDWR)
