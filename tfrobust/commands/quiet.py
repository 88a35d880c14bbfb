"""Import TensorFlow with its faster kernels, without the lines about its build on stderr."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["import_tensorflow"]

# Lines without information for a user: levels I and W of absl, which TensorFlow 2.21 writes for any
# TF_CPP_MIN_LOG_LEVEL, before its logging is initialised; the second line of one of them; and the
# errors of GPU builds where there is no GPU.
_NOISE = (
    r"[IW]\d{4} \d\d:|WARNING: All log messages before absl::|To enable the following instructions"
    r"|E\d{4} .*(failed call to cuInit|Unable to register cu\w+ factory)"
)
# A separate process forwards all other lines, also if this process is aborted, for instance where
# the processor lacks instructions that TensorFlow was built for.
_FILTER = """
import os, re, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):  # to the whole group: the end of the input ends it
    signal.signal(number, signal.SIG_IGN)
noise = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not noise.match(line):
        os.write(2, line)
"""


def import_tensorflow() -> None:
    """Import TensorFlow and let it look for devices, without noise on stderr.

    Exceptions, all other messages and later errors are unaffected.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # from here on: errors
    # TensorFlow turns oneDNN on only for processors with AVX512-VNNI or newer instructions; without
    # it convolutions take two to three times longer on the others, strided ones up to 15 times
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _filtered_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Filter noise from file descriptor 2, to which C++ writes without `sys.stderr`."""
    if sys.stderr is None:  # closed
        yield
        return
    sys.stderr.flush()
    original = os.dup(2)
    command = [sys.executable, "-I", "-S", "-c", _FILTER, _NOISE]
    filter_process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=original)
    os.dup2(filter_process.stdin.fileno(), 2)
    filter_process.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)
        os.close(original)
        filter_process.wait()
