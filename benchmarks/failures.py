"""A campaign of kills, losses, full disks and damaged files: `make faults`.

    python -m benchmarks.failures --minutes 60 --seed 1 --out failures

- kills: SIGKILL at a random moment of training, again and again until it has ended; weights and
  records must be those of an undisturbed run, bit for bit;
- experiments: the same with the commands of experiments, whose results must be the same;
- full disk: no file may grow beyond a random size; what was there must be whole, and the same call
  resumes once there is room;
- two processes: both train in one folder at the same time; one is refused, the other ends as ever;
- lost workers: SIGKILL of a Dask worker, or of one of two workers that train together; the others
  say so in time, and the same call ends with the same weights;
- damaged files: one byte changed, a piece cut off or zeroed, in every kind of file that the library
  reads. Each is refused by an error that names it, or read as it was; what is taken silently is
  counted by format;
- hostile models: code, data outside the file and archives that would fill the memory, refused.

A small part of it is in the tests. Exits with status 1 if anything is lost, or if damage is taken
silently in a format with checksums.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from benchmarks.campaign import IN_USE, Tally, same, start, undisturbed
from benchmarks.damage import damaged_files, hostile_models
from benchmarks.losses import experiments_killed, lost_dask_workers, lost_workers
from experiments.common.checks import Count, Positive
from tfrobust.commands import run


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, and from which seed on."""

    minutes: Positive = 60.0
    """In all, shared among the parts."""
    seed: Count = 1
    """Of the moments of kills, sizes of disks and places of damage."""
    out: Path | None = None
    """Folder of runs and damaged files, kept; a temporary one where None."""


def main(arguments: list[str] | None = None) -> None:
    """Run all parts in turn and print the table of counts."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        expected = undisturbed(folder / "undisturbed")
        for part, share in PARTS.items():
            end, seed = time.monotonic() + 60 * settings.minutes * share, settings.seed
            while time.monotonic() < end:
                part(seed, folder / f"{part.__name__}-{seed}", expected, tally)
                seed += 1
            print(f"{part.__name__}: seeds {settings.seed} to {seed - 1}", flush=True)
    print(tally.table().to_string())
    if tally.violations:
        sys.exit(f"error: {len(tally.violations)} violations, the first: {tally.violations[0]}")


def kills(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """SIGKILL after a random time, until training ends by itself."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        process = start(folder)
        process.join(float(rng.exponential(2.0)))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            tally.counts["kills"]["SIGKILL"] += 1
        elif process.exitcode:
            tally.violated(f"kills-{seed}: exit status {process.exitcode} after a kill")
            return
        else:
            break
    else:
        process = start(folder)
        process.join()
    tally.counts["kills"]["runs"] += 1
    if same(expected, folder):
        tally.counts["kills"]["bit-equal"] += 1
    else:
        tally.violated(f"kills-{seed}: other weights than without kills")
    if list(folder.rglob(".partial-*")):
        tally.violated(f"kills-{seed}: leftovers of killed writers")


def full_disks(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """Training where no file may grow beyond a random size, then with room."""
    largest = int(np.random.default_rng(seed).choice([0, 10, 300, 3_000, 30_000, 60_000, 100_000]))
    process = start(folder, largest_file=largest)
    process.join()
    tally.counts["full disk"]["ended with a message" if process.exitcode == 1 else "ended"] += 1
    if process.exitcode not in (0, 1):
        tally.violated(f"full_disks-{seed}: exit status {process.exitcode}")
    process = start(folder)
    process.join()
    if process.exitcode or not same(expected, folder):
        tally.violated(f"full_disks-{seed}: not resumed to the same weights")
    else:
        tally.counts["full disk"]["bit-equal"] += 1


def two_processes(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """Two processes that train in one folder at the same time."""
    processes = [start(folder), start(folder)]
    for process in processes:
        process.join()
    ends = sorted(process.exitcode for process in processes)
    # the second may come after the first has ended, and has nothing left to do
    tally.counts["two processes"]["one refused" if ends == [0, IN_USE] else "in turn"] += 1
    if ends not in ([0, IN_USE], [0, 0]) or not same(expected, folder):
        tally.violated(f"two_processes-{seed}: exit statuses {ends}, or other weights")


# share of the time of each part
PARTS = {
    kills: 0.3,
    experiments_killed: 0.15,
    full_disks: 0.05,
    two_processes: 0.05,
    lost_dask_workers: 0.1,
    lost_workers: 0.1,
    damaged_files: 0.2,
    hostile_models: 0.05,
}


if __name__ == "__main__":
    run(main)
