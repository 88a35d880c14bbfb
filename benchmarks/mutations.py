"""Seeded faults that the tests must catch: a sign, a norm, an off-by-one, a missing rounding.

    python -m benchmarks.mutations                 # all, about a quarter of an hour on 2 cores
    python -m benchmarks.mutations "norm" "sketch" # those whose names hold one of the words

Each fault is made in a copy of the working tree, in which the tests of the concept that it belongs
to run until the first failure. "caught": a test failed. "MISSED": all passed; the exit status is
then 1.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults import FAULTS as LIBRARY_FAULTS
from benchmarks.faults import Fault
from benchmarks.study_faults import STUDY_FAULTS

FAULTS = (*LIBRARY_FAULTS, *STUDY_FAULTS)
ROOT = Path(__file__).parents[1]
FOLDERS = ("tfrobust", "reference_models", "experiments", "benchmarks", "tests")
WORKERS = 2
SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the tests said of one fault."""

    fault: Fault
    verdict: str
    """"caught", "MISSED", or "broken": the tests could not be run."""
    seconds: float
    detail: str
    """The first failed test, or the last line of pytest's output."""


def main() -> None:
    """Try every fault, print a line for each as it ends, and the counts."""
    words = sys.argv[1:]
    chosen = [fault for fault in FAULTS if not words or any(w in fault.name for w in words)]
    if not chosen:
        sys.exit(f"error: no fault's name holds one of {words}")
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(WORKERS):
            copies.put(_copy(Path(folder) / str(number)))
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(_attempt, fault, copies) for fault in chosen]
            for future in concurrent.futures.as_completed(futures):
                outcome = future.result()
                outcomes.append(outcome)
                print(
                    f"{outcome.verdict:7} {outcome.seconds:6.1f} s  {outcome.fault.name}: "
                    f"{outcome.detail}",
                    flush=True,
                )
    caught = sum(outcome.verdict == "caught" for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} faults caught")
    sys.exit(caught < len(outcomes))


def _attempt(fault: Fault, copies: queue.Queue[Path]) -> Outcome:
    copy = copies.get()
    path = copy / fault.path
    original = path.read_text()
    try:
        path.write_text(fault.applied_to(original))
        started = time.perf_counter()
        code, output = _run_tests(copy, fault)
        seconds = time.perf_counter() - started
    finally:
        path.write_text(original)
        copies.put(copy)
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    last = output.strip().splitlines()[-1] if output.strip() else ""
    verdict = "caught" if code == 1 and failed else "MISSED" if code == 0 else "broken"
    return Outcome(fault, verdict, seconds, failed[0] if failed else last)


def _run_tests(copy: Path, fault: Fault) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    paths = os.pathsep.join([str(copy), str(copy / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    environment |= {"TFROBUST_HYPOTHESIS_PROFILE": "first-failure"}
    try:
        done = subprocess.run(
            [*command, *fault.tests],
            **{"cwd": copy, "env": environment, "timeout": SECONDS},
            **{"capture_output": True, "text": True, "check": False},
        )
    except subprocess.TimeoutExpired:
        return 2, f"no end within {SECONDS} s"
    return done.returncode, done.stdout


def _copy(folder: Path) -> Path:
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


if __name__ == "__main__":
    main()
