"""A campaign of kills, full disks and damaged files: `make faults`.

    python -m benchmarks.failures --minutes 60 --seed 1 --out failures

- kills: SIGKILL at a random moment of training, again and again until it has ended; weights and
  records must be those of an undisturbed run, bit for bit;
- full disk: no file may grow beyond a random size; what was there must be whole, and the same call
  resumes once there is room;
- two processes: both train in one folder at the same time; one is refused, the other ends as ever;
- damaged files: one byte changed, a piece cut off or zeroed, in every kind of file that the library
  reads. Each is refused by an error that names it, or read as it was; what is taken silently is
  counted by format.

A small part of it is in the tests. Exits with status 1 if anything is lost, or if damage is taken
silently in a format with checksums.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tyro

import reference_models
from experiments.common.checks import Count, Positive
from tfrobust import CrossEntropy, data, fit
from tfrobust.commands import run
from tfrobust.errors import TfrobustError
from tfrobust.locks import FolderInUseError
from tfrobust.report import Results, Run

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tensorflow", "tfrobust.training"])
EPOCHS = 4
# exit statuses besides 1
IN_USE, RAW = 3, 4
# without checksums in the format: damage is counted, not a violation
UNCHECKED = ("jpeg",)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, and from which seed on."""

    minutes: Positive = 60.0
    """In all, shared among the parts."""
    seed: Count = 1
    """Of the moments of kills, sizes of disks and places of damage."""
    out: Path | None = None
    """Folder of runs and damaged files, kept; a temporary one where None."""


@dataclasses.dataclass(frozen=True)
class _RunSettings:
    seed: int = 0


class Tally:
    """Counts by part and outcome, and what went wrong."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.violations: list[str] = []

    def violated(self, text: str) -> None:
        """Count and print something that was lost or taken silently."""
        self.violations.append(text)
        print(f"VIOLATED: {text}", flush=True)

    def table(self) -> pd.DataFrame:
        """One row per part."""
        return pd.DataFrame(self.counts).T.fillna(0).astype(int)


def main(arguments: list[str] | None = None) -> None:
    """Run all parts in turn and print the table of counts."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        expected = undisturbed(folder / "undisturbed")
        parts = (kills, full_disks, two_processes, damaged_files)
        for part, share in zip(parts, (0.6, 0.1, 0.05, 0.25), strict=True):
            end, seed = time.monotonic() + 60 * settings.minutes * share, settings.seed
            while time.monotonic() < end:
                part(seed, folder / f"{part.__name__}-{seed}", expected, tally)
                seed += 1
            print(f"{part.__name__}: seeds {settings.seed} to {seed - 1}", flush=True)
    print(tally.table().to_string())
    if tally.violations:
        sys.exit(f"error: {len(tally.violations)} violations, the first: {tally.violations[0]}")


def undisturbed(folder: Path) -> dict[str, np.ndarray]:
    """The weights and records of training without any failure."""
    process = _start(folder)
    process.join()
    return outcome(folder)


def train(folder: str, largest_file: int | None) -> None:
    """In a process: a small network on digits, with a checkpoint after every second step."""
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing is then an OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(4, 5, strides=3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10),
        ]
    )
    digits = data.load("digits", "train")
    try:
        fit(
            model,
            (digits.images[:600], digits.labels[:600]),
            CrossEntropy(),
            optimizer=keras.optimizers.Adam(1e-3),
            epochs=EPOCHS,
            batch_size=60,
            folder=folder,
            checkpoint_every=2,
            seed=3,
            progress=False,
        )
    except FolderInUseError:
        os._exit(IN_USE)
    except Exception as error:  # only those of the library are messages
        os._exit(1 if isinstance(error, TfrobustError) else RAW)
    np.savez(Path(folder) / "weights.npz", *(np.asarray(v) for v in model.variables))


def _start(folder: Path, largest_file: int | None = None) -> Any:
    process = _SERVER.Process(target=train, args=(str(folder), largest_file), daemon=True)
    process.start()
    return process


def outcome(folder: Path) -> dict[str, np.ndarray]:
    """What training has left: its weights."""
    with np.load(folder / "weights.npz") as archive:
        return {name: archive[name] for name in archive.files}


def _same(expected: dict[str, np.ndarray], folder: Path) -> bool:
    found = outcome(folder)
    return expected.keys() == found.keys() and all(
        np.array_equal(expected[name], found[name]) for name in expected
    )


def kills(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """SIGKILL after a random time, until training ends by itself."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        process = _start(folder)
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
        process = _start(folder)
        process.join()
    tally.counts["kills"]["runs"] += 1
    if _same(expected, folder):
        tally.counts["kills"]["bit-equal"] += 1
    else:
        tally.violated(f"kills-{seed}: other weights than without kills")
    if list(folder.rglob(".partial-*")):
        tally.violated(f"kills-{seed}: leftovers of killed writers")


def full_disks(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """Training where no file may grow beyond a random size, then with room."""
    largest = int(np.random.default_rng(seed).choice([0, 10, 300, 3_000, 30_000, 60_000, 100_000]))
    process = _start(folder, largest)
    process.join()
    tally.counts["full disk"]["ended with a message" if process.exitcode == 1 else "ended"] += 1
    if process.exitcode not in (0, 1):
        tally.violated(f"full_disks-{seed}: exit status {process.exitcode}")
    process = _start(folder)
    process.join()
    if process.exitcode or not _same(expected, folder):
        tally.violated(f"full_disks-{seed}: not resumed to the same weights")
    else:
        tally.counts["full disk"]["bit-equal"] += 1


def two_processes(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """Two processes that train in one folder at the same time."""
    processes = [_start(folder), _start(folder)]
    for process in processes:
        process.join()
    ends = sorted(process.exitcode for process in processes)
    # the second may come after the first has ended, and has nothing left to do
    tally.counts["two processes"]["one refused" if ends == [0, IN_USE] else "in turn"] += 1
    if ends not in ([0, IN_USE], [0, 0]) or not _same(expected, folder):
        tally.violated(f"two_processes-{seed}: exit statuses {ends}, or other weights")


def damaged_files(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """One damaged file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for kind, (name, read) in _formats(folder).items():
        before = read()
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(_damaged(whole, rng))
        tally.counts[kind]["files"] += 1
        try:
            after = read()
        except Exception as error:  # whatever a library raises would be a traceback for the user
            if isinstance(error, TfrobustError):
                named = path.name in str(error)
                tally.counts[kind]["refused" if named else "refused without its name"] += 1
            else:
                tally.counts[kind]["raw error"] += 1
                tally.violated(f"damaged_files-{seed}: {kind}: {type(error).__name__}: {error}")
        else:
            same = _equal(before, after)
            tally.counts[kind]["read as it was" if same else "taken silently"] += 1
            if not same and kind not in UNCHECKED:
                (folder / f"damaged-{path.name}").write_bytes(path.read_bytes())
                tally.violated(f"damaged_files-{seed}: {kind} taken silently")
        path.write_bytes(whole)


def _damaged(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    kind, place = rng.integers(4), int(rng.integers(len(content)))
    if kind == 0:
        return bytes(damaged[:place])
    if kind == 1:
        length = int(rng.integers(1, 65))
        damaged[place : place + length] = bytes(len(damaged[place : place + length]))
        return bytes(damaged)
    damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def _formats(folder: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Every kind of file: its name, and a function that reads what is in it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(40), keras.layers.Dense(3)])
    reference_models.save(model, folder / "model.keras")
    reference_models.save_weights(model, folder / "model.weights.h5")
    rng = np.random.default_rng(0)
    with_results = Run(folder / "run", _RunSettings())
    frame = pd.DataFrame({"a": rng.normal(size=200), "b": [f"row {k}" for k in range(200)]})
    with_results.frame_step("table.parquet", lambda: frame)
    with_results.arrays_step("arrays.npz", lambda: {"x": rng.normal(size=300)})
    with_results.json_step("result.json", lambda: {"accuracy": 0.5, "parts": [1, 2, 3]})
    with_results.close()
    picture = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    image = folder / "image.jpeg"
    image.write_bytes(tf.io.encode_jpeg(picture).numpy())

    def results() -> Results:
        return Results.open(folder / "run")

    def weights() -> list[np.ndarray]:
        fresh = keras.models.clone_model(model)
        reference_models.load_weights(fresh, folder / "model.weights.h5")
        return fresh.get_weights()

    def whole_model() -> list[np.ndarray]:
        return reference_models.load(folder / "model.keras").get_weights()

    return {
        "keras": ("model.keras", whole_model),
        "weights": ("model.weights.h5", weights),
        "run.json": ("run/run.json", lambda: results().record["settings"]),
        "parquet": ("run/table.parquet", lambda: results().read_frame("table.parquet").to_numpy()),
        "npz": ("run/arrays.npz", lambda: results().read_arrays("arrays.npz")["x"]),
        "json": ("run/result.json", lambda: results().read_json("result.json")),
        "jpeg": ("image.jpeg", lambda: data.read_images([image], size=(40, 40), max_corrupt=0)[0]),
    }


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, list) and before and isinstance(before[0], np.ndarray):
        return len(before) == len(after) and all(map(np.array_equal, before, after))
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and bool((before == after).all())
    return before == after


if __name__ == "__main__":
    run(main)
