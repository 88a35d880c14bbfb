"""Processes of their own that begin with TensorFlow imported, which takes longer than most of them.

They are forked from a server that has imported it and has done nothing else: TensorFlow chooses its
devices and starts its threads in each of them.
"""

import atexit
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tensorflow", "tfrobust.training", "tfrobust.alignment"])


class Child:
    """`function(*args)` in a process of its own, with what it prints; in part as subprocess.Popen.

    Args:
        function: of a module.
        args: that can be pickled.
        variables: of the environment; None removes one.
    """

    def __init__(self, function, *args, **variables):
        with tempfile.NamedTemporaryFile("w", delete=False, suffix=".txt") as file:
            self._output = Path(file.name)
        arguments = (str(self._output), variables, function, args)
        self._process = _SERVER.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid
        self.kill = self._process.kill

    @property
    def returncode(self):
        """None while it runs; the negative signal that ended it."""
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=240):
        """Its exit status."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"no end in {timeout} s: {self.printed()}"
        return self._process.exitcode

    def printed(self):
        """What it has written to stdout and stderr so far."""
        return self._output.read_text(errors="replace")

    def finished(self, timeout=240):
        """What it printed, once it has ended without an error."""
        status = self.wait(timeout)
        assert status == 0, self.printed()[-3000:]
        return self.printed()

    def __del__(self):
        self._output.unlink(missing_ok=True)


def _run(output, variables, function, args):
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        function(*args)
    finally:
        atexit._run_exitfuncs()  # which a forked process of multiprocessing leaves out
        sys.stdout.flush()
