"""TensorFlow imported without the lines about its build and devices that it writes to stderr."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["import_tensorflow"]

# What says nothing to a user: levels I and W of absl, which TensorFlow 2.21 writes whatever
# TF_CPP_MIN_LOG_LEVEL is, as it has not initialised its logging yet; the second line of one of
# them; and that there is no GPU, an error to TensorFlow's builds for GPUs.
_NOISE = (
    r"[IW]\d{4} \d\d:|WARNING: All log messages before absl::|To enable the following instructions"
    r"|E\d{4} .*(failed call to cuInit|Unable to register cu\w+ factory)"
)
# The rest is handed on by a process of its own: also when this one is aborted, as it is where the
# processor lacks instructions that TensorFlow was built for.
_FILTER = """
import os, re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
noise = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not noise.match(line):
        os.write(2, line)
"""


def import_tensorflow() -> None:
    """Import TensorFlow and let it look for devices, with what is noise left out of stderr.

    Python's exceptions and other messages come through; later errors do as well.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # from here on: errors
    with _filtered_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """File descriptor 2 less noise, which C++ writes to past `sys.stderr`."""
    if sys.stderr is None:  # closed
        yield
        return
    sys.stderr.flush()
    before = os.dup(2)
    command = [sys.executable, "-I", "-S", "-c", _FILTER, _NOISE]
    filtering = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=before)
    os.dup2(filtering.stdin.fileno(), 2)
    filtering.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        filtering.wait()
