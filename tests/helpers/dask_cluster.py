"""A Dask scheduler and its workers as processes, started as users start them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]


class DaskCluster:
    """A scheduler on a port that the system chooses, and workers that read it from a file."""

    def __init__(self, workers):
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "scheduler.json"
        local = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.scheduler = self._launch("scheduler", *local)
        self.workers = [self.add_worker() for _ in range(workers)]

    def _launch(self, kind, *options):
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        return subprocess.Popen(
            [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self._file), *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

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
