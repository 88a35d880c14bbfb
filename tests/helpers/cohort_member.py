"""What test_cohorts sends to Dask workers: trains one member of a digits cohort."""

import os
import time
from pathlib import Path


def train(member):
    """Train with checkpoints in member["folder"]; says which process finished it."""
    import keras
    import numpy as np

    from tfrobust import data, training
    from tfrobust.objectives import CrossEntropy, DoubleBackprop

    folder = Path(member["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    digits = data.load("digits").take(200)
    images = digits.images[:, ::2, ::2]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((14, 14, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        log.write(f"{os.getpid()}\n")

    def wait(record, model):
        with (folder.parent / f"{folder.name}.epochs").open("a") as log:
            log.write(f"{os.getpid()} {record['epoch']}\n")
        time.sleep(member["pause"])

    training.fit(
        model,
        (images, digits.labels),
        CrossEntropy() + DoubleBackprop(member["weight"]),
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        epochs=member["epochs"],
        batch_size=50,
        folder=folder,
        callbacks=[wait],
        progress=False,
    )
    weights = np.concatenate([np.ravel(keras.ops.convert_to_numpy(v)) for v in model.variables])
    return {"pid": os.getpid(), "weights": weights.tolist()}


def fail(member):
    """What a fault in a member looks like."""
    raise ValueError(f"member {member} has no data")


def exit_hard(member):
    """A member that takes every worker down."""
    os._exit(1)


def block(path):
    """A member that runs until its worker is killed."""
    Path(path).touch()
    time.sleep(600)
