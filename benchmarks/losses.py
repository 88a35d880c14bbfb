"""Processes of experiments and clusters that are killed at random moments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.campaign import RAW, Tally, outcome, same, start, train
from tfrobust.distribution import SchedulerError, map_cohort
from tfrobust.report import Results

__all__ = ["experiments_killed", "lost_dask_workers", "lost_workers"]

# of a worker whose fellow has been killed; heartbeats are missed after ten
_SECONDS_TO_NOTICE = 60
_ATTEMPTS = 8
EXPERIMENTS = (
    ("experiments.peck2017.linear", ("--features", "2", "20", "--inputs", "40")),
    ("experiments.kim2019.tilting", ("--seeds", "0")),
    (
        "experiments.etmann2019.mnist",
        ("--lambdas", "10", "--epochs", "2", "--evaluated", "12", "--carlini-wagner-steps", "5"),
    ),
)
_undisturbed: dict[str, dict[str, Any]] = {}


def experiments_killed(
    seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally
) -> None:
    """SIGKILL of an experiment's command at random moments, until it ends by itself."""
    rng = np.random.default_rng(seed)
    module, options = EXPERIMENTS[seed % len(EXPERIMENTS)]
    if module not in _undisturbed:
        began = time.monotonic()
        _command(module, options, folder / "undisturbed").wait()
        found = _results(folder / "undisturbed")
        _undisturbed[module] = {"results": found, "seconds": time.monotonic() - began}
    seconds = _undisturbed[module]["seconds"]
    process = None
    for _ in range(_ATTEMPTS):
        process = _command(module, options, folder / "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(float(rng.uniform(0.3, 1.0)) * seconds)
            break
        process.kill()
        process.wait()
        tally.counts["experiments"]["SIGKILL"] += 1
    if process is None or process.returncode != 0:
        process = _command(module, options, folder / "killed")
        process.wait()
    if process.returncode:
        tally.violated(f"experiments_killed-{seed}: exit status {process.returncode}")
    elif _results(folder / "killed") != _undisturbed[module]["results"]:
        tally.violated(f"experiments_killed-{seed}: {module}: other results than without kills")
    else:
        tally.counts["experiments"]["bit-equal"] += 1


def _command(module: str, options: tuple[str, ...], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, "--preset", "demo", *options, "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def _results(folder: Path) -> dict[str, str]:
    """What a run has found, by file; without its times."""
    results = Results.open(folder)
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            frame = results.read_frame(name)
            timeless = frame[[column for column in frame if "seconds" not in str(column)]]
            found[name] = timeless.to_json(double_precision=15)
        elif path.suffix == ".npz" and "training" not in path.parts:
            arrays = results.read_arrays(name)
            found[name] = repr({key: value.tobytes() for key, value in arrays.items()})
    return found


def lost_dask_workers(
    seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally
) -> None:
    """Two members on two Dask workers, of which random ones are killed and replaced."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    members = [str(folder / f"member-{number}") for number in range(2)]
    with _dask(folder, 2) as (address, workers):
        ended = threading.Event()

        def kill_workers() -> None:
            for _ in range(2):
                if ended.wait(float(rng.uniform(2.0, 12.0))):
                    return
                victim = int(rng.integers(len(workers)))
                workers[victim].kill()
                workers[victim].wait()
                tally.counts["lost Dask workers"]["SIGKILL"] += 1
                workers[victim] = _dask_process("worker", folder)

        killer = threading.Thread(target=kill_workers)
        killer.start()
        try:
            map_cohort(train, members, scheduler=address, timeout=60)
        except SchedulerError as error:
            tally.violated(f"lost_dask_workers-{seed}: {error}")
            return
        finally:
            ended.set()
            killer.join()
    for member in members:
        if same(expected, Path(member)):
            tally.counts["lost Dask workers"]["bit-equal"] += 1
        else:
            tally.violated(f"lost_dask_workers-{seed}: other weights in {member}")


def _dask_process(kind: str, folder: Path) -> subprocess.Popen[bytes]:
    """A scheduler on a port of the system's choice, or a worker that reads it from a file."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard"]
    command += ["--scheduler-file", str(folder / "scheduler.json")]
    if kind == "scheduler":
        command += ["--host", "127.0.0.1", "--port", "0"]
    else:
        command += ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    with (folder / "dask.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


@contextlib.contextmanager
def _dask(folder: Path, count: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    scheduler = _dask_process("scheduler", folder)
    workers = []
    try:
        file, deadline = folder / "scheduler.json", time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = [_dask_process("worker", folder) for _ in range(count)]
        yield json.loads(file.read_text())["address"], workers
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


_two_workers: dict[str, np.ndarray] = {}


def lost_workers(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """SIGKILL of one of two workers that train together, then both again until they end."""
    rng = np.random.default_rng(seed)
    if not _two_workers:
        for process in _together(folder / "undisturbed"):
            process.join()
        _two_workers.update(outcome(folder / "undisturbed"))
    place = folder / "killed"
    for _ in range(_ATTEMPTS):
        processes = _together(place)
        victim = processes[int(rng.integers(2))]
        victim.join(float(rng.uniform(3.0, 14.0)))
        if victim.exitcode is not None:
            break
        os.kill(victim.pid, signal.SIGKILL)
        tally.counts["lost workers"]["SIGKILL"] += 1
        other = processes[0] if victim is processes[1] else processes[1]
        other.join(_SECONDS_TO_NOTICE)
        if other.exitcode is None:
            other.kill()
            tally.violated(f"lost_workers-{seed}: not noticed in {_SECONDS_TO_NOTICE} s")
        elif other.exitcode == RAW:
            tally.violated(f"lost_workers-{seed}: a raw error")
        else:
            tally.counts["lost workers"]["noticed"] += 1
    else:
        processes = _together(place)
    for process in processes:
        process.join(10 * _SECONDS_TO_NOTICE)
    if any(process.exitcode for process in processes) or not same(_two_workers, place):
        statuses = [process.exitcode for process in processes]
        tally.violated(f"lost_workers-{seed}: exit statuses {statuses}, or other weights")
    else:
        tally.counts["lost workers"]["bit-equal"] += 1


def _together(folder: Path) -> list[Any]:
    """Two workers that train in one folder."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    configs = [
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        for index in range(2)
    ]
    return [
        start(folder, variables={"TF_CONFIG": json.dumps(config)}, workers=2) for config in configs
    ]
