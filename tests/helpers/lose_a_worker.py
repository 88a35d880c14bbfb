"""One of two workers that train a network of one layer until the other is gone."""

from pathlib import Path

import keras
import numpy as np

from tfrobust import distribution
from tfrobust.commands import run
from tfrobust.objectives import CrossEntropy
from tfrobust.training import fit


def train(folder):
    """With a file per worker once an epoch is finished."""
    with distribution.strategy("multi_worker", timeout=60).scope():
        begun = Path(folder, str(distribution.worker_index()))
        fit(
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]),
            (np.zeros((4, 2), "float32"), np.array([0, 1, 0, 1])),
            CrossEntropy(),
            optimizer=keras.optimizers.SGD(0.1),
            epochs=100_000,
            batch_size=2,
            callbacks=[lambda record, model: begun.touch()],
            progress=False,
        )


def main(folder):
    """As a command, which says in one line why it ends."""
    run(lambda: train(folder))
