"""What a campaign of failures counts, and the training that it disturbs."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from tfrobust import CrossEntropy, data, distribution, fit
from tfrobust.errors import TfrobustError
from tfrobust.locks import FolderInUseError

__all__ = ["IN_USE", "RAW", "Tally", "outcome", "same", "start", "train", "undisturbed"]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tensorflow", "tfrobust.training"])
EPOCHS = 4
# exit statuses besides 1
IN_USE, RAW = 3, 4
_RESULT = "result.npz"


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


def train(folder: str) -> None:
    """A small network on digits, with a checkpoint after every second step."""
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
    history = fit(
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
    if distribution.is_chief():
        records = history.to_frame().drop(columns="seconds").to_numpy()
        np.savez(Path(folder, _RESULT), records, *(np.asarray(v) for v in model.variables))


def train_in_process(
    folder: str, largest_file: int | None, variables: dict[str, str], workers: int
) -> None:
    """`train`, with its end as an exit status.

    Args:
        folder: of the run.
        largest_file: bytes beyond which no file may grow; None for no limit.
        variables: of the environment.
        workers: of a multi-worker strategy; 1 for none.
    """
    os.environ.update(variables)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing is then an OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        if workers == 1:
            train(folder)
        else:
            with distribution.strategy("multi_worker", timeout=60).scope():
                train(folder)
    except FolderInUseError:
        os._exit(IN_USE)
    except Exception as error:  # only those of the library are messages
        os._exit(1 if isinstance(error, TfrobustError) else RAW)
    if workers > 1:
        os._exit(0)  # TensorFlow's service of workers would wait for the others


def start(
    folder: Path,
    *,
    largest_file: int | None = None,
    variables: dict[str, str] | None = None,
    workers: int = 1,
) -> Any:
    """Begin to train in a process of its own; see `train_in_process`."""
    arguments = (str(folder), largest_file, variables or {}, workers)
    process = _SERVER.Process(target=train_in_process, args=arguments, daemon=True)
    process.start()
    return process


def undisturbed(folder: Path) -> dict[str, np.ndarray]:
    """Records and weights of training without any failure."""
    process = start(folder)
    process.join()
    return outcome(folder)


def outcome(folder: Path) -> dict[str, np.ndarray]:
    """What training has left: its records and weights."""
    with np.load(folder / _RESULT) as archive:
        return {name: archive[name] for name in archive.files}


def same(expected: dict[str, np.ndarray], folder: Path) -> bool:
    """Whether training has left what is expected, bit for bit."""
    found = outcome(folder)
    return expected.keys() == found.keys() and all(
        np.array_equal(expected[name], found[name]) for name in expected
    )
