"""Hosts that wait for one another, on loopback."""

import socket
import threading
import time

import pytest
from helpers.ports import reserved_addresses

from tfrobust.distribution.rendezvous import WorkerTimeoutError, wait_for_workers


def addresses(count):
    return (*reserved_addresses(1), *(f"127.0.0.1:{k}" for k in range(1, count)))


def start(cluster, index, timeout, results):
    def run():
        try:
            results[index] = wait_for_workers(cluster, index, timeout) or "met"
        except WorkerTimeoutError as error:
            results[index] = str(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_come_in_any_order(order):
    cluster, results, threads = addresses(3), {}, []
    for index in order:
        threads.append(start(cluster, index, 20, results))
        time.sleep(0.1)
    for thread in threads:
        thread.join(20)
    assert results == {0: "met", 1: "met", 2: "met"}


def test_nobody_goes_before_all_have_come():
    cluster, results = addresses(3), {}
    threads = [start(cluster, index, 20, results) for index in (0, 1)]
    time.sleep(0.5)
    assert results == {}
    threads.append(start(cluster, 2, 20, results))
    for thread in threads:
        thread.join(20)
    assert set(results.values()) == {"met"}


def test_one_that_never_comes_is_named_to_all():
    cluster, results = addresses(3), {}
    threads = [start(cluster, index, 0.6, results) for index in (0, 1)]
    for thread in threads:
        thread.join(20)
    assert results[0].startswith("worker 2 at 127.0.0.1:2 of 3 did not connect within 0.6 s")
    assert f"worker 0 at {cluster[0]}" in results[1]


def test_a_first_host_that_never_comes():
    cluster = addresses(2)
    with pytest.raises(WorkerTimeoutError, match=r"worker 0 at 127.0.0.1:\d+ of 2 did not connect"):
        wait_for_workers(cluster, 1, 0.5)


def test_strangers_are_not_counted():
    cluster, results = addresses(2), {}
    thread = start(cluster, 0, 20, results)
    time.sleep(0.2)
    port = int(cluster[0].rpartition(":")[2])
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"tfrobust worker x"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    time.sleep(0.2)
    assert results == {}
    wait_for_workers(cluster, 1, 20)
    thread.join(20)
    assert results == {0: "met"}


def test_a_port_in_use():
    with socket.create_server(("", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(WorkerTimeoutError, match="is another run using this port"):
            wait_for_workers((f"127.0.0.1:{port}", "127.0.0.1:1"), 0, 1)
