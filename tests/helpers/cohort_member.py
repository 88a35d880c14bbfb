"""What test_cohorts sends to Dask workers: one member of a cohort."""

import os
import random
import signal
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

    def wait(record, model):
        note(folder, record["epoch"])
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


def note(folder, epoch):
    """That this process has finished an epoch, beside the member's folder."""
    with (folder.parent / f"{folder.name}.epochs").open("a") as log:
        log.write(f"{os.getppid()} {os.getpid()} {epoch}\n")


def noted(folder):
    """Worker, process and epoch, as they were noted."""
    log = folder.parent / f"{folder.name}.epochs"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def count(member):
    """Epochs without training, each of which is kept."""
    folder = Path(member["folder"])
    for epoch in range(len(noted(folder)) + 1, member["epochs"] + 1):
        note(folder, epoch)
        time.sleep(member["pause"])
    return folder.name


def draw(seed):
    """What Python's own generator draws while threads of Dask draw from theirs, and where."""
    random.seed(seed)
    drawn = [random.random() for _ in range(1000)]
    return {"drawn": drawn, "pid": os.getpid(), "worker": os.getppid()}


def fail(member):
    """What a fault in a member looks like."""
    raise ValueError(f"member {member} has no data")


class OddError(Exception):
    """Cannot be copied."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def fail_oddly(member):
    raise OddError(member, 1)


def return_a_lock(member):
    import threading

    return threading.Lock()


def exit_hard(member):
    """A member that ends its process."""
    os._exit(7)


def be_killed_once(path):
    """As by the system where memory is short."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def kill_worker(member):
    """A member that takes every worker down."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
