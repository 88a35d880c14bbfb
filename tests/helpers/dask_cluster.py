"""A Dask scheduler and its workers as processes, by the commands that users start them with."""

import importlib
import json
import tempfile
import time
from pathlib import Path

from helpers.processes import Child


def _main(kind, arguments):
    """`dask scheduler` or `dask worker`."""
    importlib.import_module(f"distributed.cli.dask_{kind}").main(arguments)


class DaskCluster:
    """A scheduler on a port that the system chooses, and workers that read it from a file."""

    def __init__(self, workers):
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "scheduler.json"
        local = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.scheduler = self._launch("scheduler", *local)
        self.workers = [self.add_worker() for _ in range(workers)]

    def _launch(self, kind, *options):
        return Child(_main, kind, ["--scheduler-file", str(self._file), *options])

    def add_worker(self):
        return self._launch("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard")

    @property
    def address(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.scheduler.poll() is None, "the scheduler did not start"
            try:
                return json.loads(self._file.read_text())["address"]
            except (FileNotFoundError, ValueError):
                time.sleep(0.05)
        raise AssertionError("the scheduler has not written its address")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self._folder.cleanup()
