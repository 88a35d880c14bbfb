"""Hosts wait for one another, with a time-out and by name, before TensorFlow does so without."""

from __future__ import annotations

import contextlib
import socket
import time

from tfrobust.errors import TfrobustError

__all__ = ["WorkerTimeoutError", "meet"]

_HELLO = b"tfrobust worker "
_GO = b"go"
_PAUSE = 0.2


class WorkerTimeoutError(TfrobustError, RuntimeError):
    """A host of a multi-host run has not come."""


def meet(addresses: tuple[str, ...], index: int, timeout: float) -> None:
    """Return once every host has come: all report to the first, which lets them go together.

    Args:
        addresses: "host:port" of each.
        index: of this one.
        timeout: seconds to wait.

    Raises:
        WorkerTimeoutError: someone has not come in time; says who.
    """
    deadline = time.monotonic() + timeout
    if index == 0:
        _receive(addresses, deadline, timeout)
    else:
        _report(addresses, index, deadline, timeout)


def _receive(addresses: tuple[str, ...], deadline: float, timeout: float) -> None:
    come: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(
                socket.create_server(("", _port(addresses[0])), backlog=len(addresses))
            )
        except OSError as error:
            raise WorkerTimeoutError(
                f"cannot listen on {addresses[0]} ({error}): is another run using this port?"
            ) from error
        while len(come) < len(addresses) - 1:
            left = deadline - time.monotonic()
            missing = [k for k in range(1, len(addresses)) if k not in come]
            if left <= 0:
                raise WorkerTimeoutError(_sorry(addresses, missing, timeout))
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # a stranger, or the time-out
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.settimeout(5)
                words = connection.recv(64)
                if words.startswith(_HELLO):
                    come[int(words[len(_HELLO) :])] = connection
        for connection in come.values():
            connection.sendall(_GO)


def _report(addresses: tuple[str, ...], index: int, deadline: float, timeout: float) -> None:
    name, _, _ = addresses[0].rpartition(":")
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((name, _port(addresses[0])), timeout=left) as connection:
                connection.sendall(_HELLO + str(index).encode())
                if connection.recv(8) == _GO:
                    return
        except OSError:
            pass  # not there yet
        time.sleep(_PAUSE)
    raise WorkerTimeoutError(_sorry(addresses, [0], timeout) + " (or others that it waits for)")


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _sorry(addresses: tuple[str, ...], missing: list[int], timeout: float) -> str:
    names = ", ".join(f"worker {k} at {addresses[k]}" for k in missing)
    return (
        f"{names} of {len(addresses)} has not come within {timeout:g} s. Start the same program on "
        "every host with the same TF_CONFIG cluster and its own index, and check that the hosts "
        "reach one another on these ports."
    )
