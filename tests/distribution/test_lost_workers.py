"""Two workers of which one ends: what the other says, and how soon."""

import json
import os
import signal
import time

import pytest
from helpers import lose_a_worker
from helpers.ports import reserved_addresses
from helpers.processes import Child

LOST = "error: a worker of 2 was lost while worker"


@pytest.fixture
def both(tmp_path):
    """Two workers that are training, the chief first."""
    cluster = {"worker": reserved_addresses(2)}
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    configs = [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
    workers = [Child(lose_a_worker.main, tmp_path, TF_CONFIG=config) for config in configs]
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline
            assert all(worker.poll() is None for worker in workers), workers[0].printed()
            time.sleep(0.05)
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def last_line(worker):
    return worker.printed().splitlines()[-1]


# the chief is missed at once, another worker when its heartbeats are, in ten seconds
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_sigterm_ends_one_worker_and_the_other_says_that_it_is_lost(both, lost):
    """TensorFlow's service of workers would ignore SIGTERM, and both would go on."""
    os.kill(both[lost].pid, signal.SIGTERM)
    assert both[lost].wait(30) == 143
    assert last_line(both[lost]).startswith("interrupted; a run folder keeps")
    assert both[1 - lost].wait(60) == 1
    assert last_line(both[1 - lost]).startswith(f"{LOST} {1 - lost} was training (")
    assert last_line(both[1 - lost]).endswith("training resumes from the last checkpoint.")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_chief_is_lost_or_both_are_interrupted(both, number):
    ended = both if number == signal.SIGTERM else both[:1]
    for worker in ended:
        os.kill(worker.pid, number)
    statuses = [worker.wait(60) for worker in both]
    assert statuses == ([143, 143] if number == signal.SIGTERM else [-signal.SIGKILL, 1])
    assert number == signal.SIGTERM or last_line(both[1]).startswith(LOST)
