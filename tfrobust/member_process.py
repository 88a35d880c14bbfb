"""A member of a cohort in a process of its own, which ends with the worker that started it.

Keras draws seeds from Python's `random`, which Dask's threads use too, and has other global state;
a member that crashes or runs out of memory leaves its worker alive; and a thread could not be
stopped when nobody waits for its result any longer.

This module imports no TensorFlow, so that workers take no memory of their own on a GPU.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tfrobust.interrupts import Terminated, interruptible
from tfrobust.locks import shared_with_members

__all__ = ["MemberLostError", "main", "run_member"]

# Members share the devices of their worker, whatever its number of threads
_ONE_PER_WORKER = threading.Lock()
_POLL_SECONDS = 0.2
# from SIGTERM, which lets it clean up, to SIGKILL; a step of training may take a while
_GRACE_SECONDS = 5.0
_TERMINATED = 128 + signal.SIGTERM


class MemberLostError(Exception):
    """A member's process ended without a result, or was stopped; sent to the client by Dask."""


def run_member(call: bytes) -> bytes:
    """On a Dask worker: the pickled outcome of a pickled call, made in another process.

    Args:
        call: (function, argument), pickled by Dask.

    Returns:
        (result, None), or (None, exception) where the function raised one.

    Raises:
        MemberLostError: the process ended without either, or this worker shall no longer run it.
    """
    is_wanted = _wanted()
    while not _ONE_PER_WORKER.acquire(timeout=_POLL_SECONDS):
        if not is_wanted():
            raise MemberLostError("cancelled")
    try:
        with tempfile.TemporaryDirectory(prefix="tfrobust-member-") as folder:
            Path(folder, "call").write_bytes(call)
            status = _run_process(folder, is_wanted)
            outcome = Path(folder, "outcome")
            if not outcome.exists():
                raise MemberLostError(_ending(status))
            return outcome.read_bytes()
    finally:
        _ONE_PER_WORKER.release()


def _wanted() -> Callable[[], bool]:
    """Tells whether this thread's Dask task is still to be run by this worker."""
    from distributed import Status, get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        runs = worker.status in (Status.running, Status.paused)
        return runs and task is not None and task.state != "cancelled"

    return is_wanted


def _run_process(folder: str, is_wanted: Callable[[], bool]) -> int:
    """Exit status of the process, which is stopped once it is not wanted."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, folder],
        stdin=subprocess.PIPE,  # closed when this worker ends, however it does
        env=environment,
    )
    with process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
            if not is_wanted():
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_SECONDS)
                process.kill()
    return process.returncode


def _ending(status: int) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return "ended by SIGTERM" if status == _TERMINATED else f"ended with exit status {status}"


def main() -> None:
    """In the process: make the call, and leave its outcome in the folder of the command line.

    Raises:
        SystemExit: it was stopped.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker ends it, not Ctrl-C in its terminal
    from distributed.protocol.pickle import dumps, loads

    threading.Thread(target=_end_with_worker, daemon=True).start()
    folder = Path(sys.argv[1])
    try:
        with interruptible() as received:
            try:
                function, argument = loads((folder / "call").read_bytes())
                with shared_with_members():
                    outcome = dumps((function(argument), None))
            except Exception as error:  # raised again where the cohort was started
                if received.number is not None:
                    raise Terminated from error
                error.add_note(f"\nOn the worker:\n\n{traceback.format_exc()}")
                outcome = dumps((None, _portable(error)))
    except Terminated:
        print("a member of a cohort was stopped; finished steps are kept", file=sys.stderr)
        sys.exit(_TERMINATED)
    # whole or not there, as the worker may be reading
    (folder / "unfinished").write_bytes(outcome)
    (folder / "unfinished").rename(folder / "outcome")


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot be sent."""
    from distributed.protocol.pickle import dumps, loads

    try:
        return loads(dumps(error))
    except Exception:  # whatever its class does when it is copied
        return RuntimeError("".join(traceback.format_exception(error)))


def _end_with_worker() -> None:
    """Stop this process at the end of its input: another worker begins with its member."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(_TERMINATED)


if __name__ == "__main__":
    main()
