"""SIGTERM, which clusters and services send, ends a program in the same way as Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["Received", "Terminated", "interruptible"]

# signals that are caught, where they have this handler
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


@dataclasses.dataclass
class Received:
    """The last signal, None where there was none."""

    number: int | None = None


@contextlib.contextmanager
def interruptible() -> Iterator[Received]:
    """In the block, SIGTERM raises `Terminated` where Ctrl-C raises KeyboardInterrupt.

    What was received is noted too: raised inside a call of TensorFlow, the exception may come out
    as another one. Without effect outside the main thread, where Python sets no handlers, and for
    signals that the surrounding program handles or ignores.
    """
    received = Received()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.number = number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    usual = {k: h for k, h in _USUAL.items() if in_main_thread and signal.getsignal(k) is h}
    for number in usual:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
