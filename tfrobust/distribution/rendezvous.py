"""The workers of a run wait for one another with a time-out, which TensorFlow lacks."""

from __future__ import annotations

import contextlib
import socket
import time

from tfrobust.errors import TfrobustError

__all__ = ["WorkerTimeoutError", "wait_for_workers"]

_HELLO = b"tfrobust worker "
_GO = b"go"
_PAUSE = 0.2


class WorkerTimeoutError(TfrobustError, RuntimeError):
    """A worker of a multi-worker run did not connect in time."""


def wait_for_workers(addresses: tuple[str, ...], index: int, timeout: float) -> None:
    """Return once every worker has called this: all connect to the chief, which answers them.

    Args:
        addresses: "host:port" per worker; the first is the chief's.
        index: of this worker.
        timeout: seconds to wait.

    Raises:
        WorkerTimeoutError: a worker did not connect in time; names it.
    """
    deadline = time.monotonic() + timeout
    if index == 0:
        _accept_workers(addresses, deadline, timeout)
    elif not _connect_to_chief(addresses[0], index, deadline):
        reason = _timeout_message(addresses, [0], timeout)
        raise WorkerTimeoutError(f"{reason} (The chief may be waiting for yet another worker.)")


def _accept_workers(addresses: tuple[str, ...], deadline: float, timeout: float) -> None:
    connected: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(
                socket.create_server(("", _port(addresses[0])), backlog=len(addresses))
            )
        except OSError as error:
            raise WorkerTimeoutError(
                f"cannot listen on {addresses[0]} ({error}): is another run using this port?"
            ) from error
        while len(connected) < len(addresses) - 1:
            remaining = deadline - time.monotonic()
            missing = [k for k in range(1, len(addresses)) if k not in connected]
            if remaining <= 0:
                raise WorkerTimeoutError(_timeout_message(addresses, missing, timeout))
            server.settimeout(remaining)
            with contextlib.suppress(OSError, ValueError):  # another program, or the time-out
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.settimeout(5)
                message = connection.recv(64)
                if message.startswith(_HELLO):
                    connected[int(message[len(_HELLO) :])] = connection
        for connection in connected.values():
            connection.sendall(_GO)


def _connect_to_chief(chief: str, index: int, deadline: float) -> bool:
    """Whether the chief has answered that all workers are connected."""
    host, _, _ = chief.rpartition(":")
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, _port(chief)), timeout=remaining) as connection:
                connection.sendall(_HELLO + str(index).encode())
                if connection.recv(8) == _GO:
                    return True
        except OSError:
            pass  # the chief is not listening yet
        time.sleep(_PAUSE)
    return False


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _timeout_message(addresses: tuple[str, ...], missing: list[int], timeout: float) -> str:
    names = ", ".join(f"worker {k} at {addresses[k]}" for k in missing)
    return (
        f"{names} of {len(addresses)} did not connect within {timeout:g} s. Start the same program "
        "on every worker, with the same TF_CONFIG cluster and its own index, and make sure that "
        "they reach one another on these ports."
    )
