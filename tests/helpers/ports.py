"""Ports for servers whose address must be known before they start."""

import contextlib
import fcntl
import random
import socket
import tempfile
from pathlib import Path

_LOCKS = []  # held until this process ends


def reserved_ports(count):
    """Free ports that no other test takes, and that the system gives to nobody.

    They lie below 32768, where Linux begins to give out ports of its own choice.
    """
    folder = Path(tempfile.gettempdir()) / "tfrobust-test-ports"
    folder.mkdir(exist_ok=True)
    ports, candidates = [], random.SystemRandom().sample(range(12_000, 30_000), 1000)
    while len(ports) < count:
        port = candidates.pop()
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("", port)).close()
        except OSError:
            lock.close()
            continue
        _LOCKS.append(lock)
        ports.append(port)
    return ports


def reserved_addresses(count):
    return [f"127.0.0.1:{port}" for port in reserved_ports(count)]


@contextlib.contextmanager
def refusing_address():
    """An address at which nothing listens, and nothing can: its port is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"
