"""fit(): the one training loop.

Not `keras.Model.fit`: objectives need second derivatives, a killed run must go on where it was,
and `model.fit` fails under MultiWorkerMirroredStrategy in Keras 3 (keras-team/keras#20585).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from tfrobust import checkpoints
from tfrobust.batches import as_images, as_labels, in_batches
from tfrobust.differentiate import classes_of, compiled
from tfrobust.files import atomic_path, writable_folder
from tfrobust.loop import Loop, NonFiniteLossError
from tfrobust.objectives import Objective, _Term
from tfrobust.schedules import Cosine, Schedule

__all__ = ["History", "NonFiniteLossError", "SettingsChangedError", "evaluate", "fit"]

Arrays = tuple[Any, Any]
Callback = Callable[[dict[str, float], keras.Model], None]


class SettingsChangedError(ValueError):
    """The folder holds training with other settings or other data."""


@dataclasses.dataclass(frozen=True)
class History:
    """What was seen in training: one record an epoch."""

    records: tuple[dict[str, float], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row an epoch: learning rate, each part of the objective, accuracies, seconds."""
        return pd.DataFrame(list(self.records))


def fit(
    model: keras.Model,
    data: Arrays,
    objective: Objective | _Term,
    *,
    optimizer: keras.optimizers.Optimizer,
    epochs: int,
    batch_size: int = 100,
    schedule: Schedule | None = None,
    validation: Arrays | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Minimise `objective` over the model's trainable weights.

    Runs under the `tf.distribute` strategy in whose scope it is called; `batch_size` is then the
    global batch. Each epoch visits the examples in an order drawn from (seed, epoch) and leaves out
    the last incomplete batch.

    With a `folder`, every epoch ends with a checkpoint, `last.keras`, `best.keras` (lowest
    validation loss) and TensorBoard scalars in it. The same call with the same folder goes on after
    the last finished epoch and ends with the weights of an undisturbed run.

    Args:
        model: any Keras classifier; a final softmax is left out of the objective.
        data: images (count, *input) in the model's input space and labels (count,).
        objective: a term or a sum of terms of `tfrobust.objectives`.
        optimizer: a fresh Keras optimizer; its own learning rate holds unless `schedule` is given.
        epochs: passes over the data in all, finished ones included.
        batch_size: examples a step, over all replicas.
        schedule: learning rate of each epoch.
        validation: images and labels whose loss (mean cross-entropy) and accuracy end each epoch.
        folder: where checkpoints go; nothing is written where None.
        seed: of the order of examples. Weights and dropout have the seeds they were built with.
        callbacks: called after each epoch with its record and the model.
        progress: show a bar with the parts of the objective.

    Returns:
        `History`, of finished epochs of earlier calls too.

    Raises:
        ValueError: malformed data, fewer examples than a batch, or a schedule without what it
            monitors.
        SettingsChangedError: the folder holds training with other settings or data.
        DamagedCheckpointError: the newest checkpoint cannot be read.
        NonFiniteLossError: the objective is infinite or NaN; names epoch, step and setting. The
            model goes back to the last checkpoint if there is one.
        OSError: the folder is not writable, or the disk is full.
    """
    objective = objective if isinstance(objective, Objective) else Objective((objective,))
    images, labels = _checked(model, data, "data")
    if len(images) < batch_size:
        raise ValueError(f"{len(images)} examples do not fill one batch of {batch_size}")
    if validation is not None:
        validation = _checked(model, validation, "validation")
    if schedule is not None and _needs_validation(schedule) and validation is None:
        raise ValueError(f"{type(schedule).__name__} monitors the validation loss: give validation")
    path = None if folder is None else writable_folder(folder)

    loop = Loop(model, objective, optimizer, images, labels, batch_size, seed)
    settings = _settings(objective, optimizer, schedule, epochs, batch_size, seed, images, labels)
    records = _resume(path, model, optimizer, settings)
    steps = len(images) // batch_size
    with tqdm(
        total=steps, disable=None if progress else True, leave=False, unit="step", delay=1
    ) as bar:
        for epoch in range(len(records), epochs):
            started = time.perf_counter()
            if schedule is not None:
                monitored = [record.get(schedule.monitor, math.nan) for record in records]
                optimizer.learning_rate = schedule(epoch, epochs, monitored)
            bar.reset(steps)
            bar.set_description(f"epoch {epoch + 1}/{epochs}")
            record = {"epoch": epoch + 1, "learning_rate": _rate(optimizer)}
            try:
                record |= loop.epoch(epoch, bar)
            except NonFiniteLossError:
                last = checkpoints.newest(path) if path else None
                if last is not None:
                    checkpoints.assign(checkpoints.read(last)[1], model, optimizer)
                raise
            if validation is not None:
                record |= evaluate(model, *validation, batch_size=batch_size)
            record["seconds"] = round(time.perf_counter() - started, 3)
            records.append(record)
            if path is not None:
                _write(path, epoch, model, optimizer, settings, records)
            for callback in callbacks:
                callback(record, model)
    return History(tuple(records))


def evaluate(model: keras.Model, x: Any, labels: Any, *, batch_size: int = 100) -> dict[str, float]:
    """Mean cross-entropy and accuracy of a classifier: `validation_loss`, `validation_accuracy`.

    Args:
        model: any Keras classifier.
        x: (count, *input).
        labels: (count,).
        batch_size: examples a call.

    Raises:
        ValueError: malformed inputs or labels.
    """
    x, labels = _checked(model, (x, labels), "x")

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(rows: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            values = logits(rows, training=False)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, values)
            return losses, tf.argmax(values, axis=1, output_type=tf.int32) == classes

        return run

    run = compiled(model, "evaluate", build, x)
    losses, correct = in_batches(run, x, labels, batch_size=batch_size, description="evaluation")
    return {
        "validation_loss": float(np.mean(losses, dtype=np.float64)),
        "validation_accuracy": float(np.mean(correct)),
    }


def _rate(optimizer: keras.optimizers.Optimizer) -> float:
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _checked(model: keras.Model, data: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = data
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair, images and labels") from None
    images = as_images(model, images, f"{name} images")
    return images, as_labels(labels, len(images), classes_of(model, images[:1]), f"{name} labels")


def _needs_validation(schedule: Schedule) -> bool:
    return getattr(schedule, "patience", None) is not None and schedule.monitor.startswith(
        "validation"
    )


def _settings(
    objective: Objective,
    optimizer: keras.optimizers.Optimizer,
    schedule: Schedule | None,
    epochs: int,
    batch_size: int,
    seed: int,
    images: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """What must stay the same for a run to go on; `epochs` only where rates depend on it."""
    rate = None
    if schedule is not None:
        rate = {"schedule": type(schedule).__name__, **dataclasses.asdict(schedule)}
    configuration = {k: v for k, v in optimizer.get_config().items() if k != "name"}
    if schedule is not None:
        configuration.pop("learning_rate", None)  # the schedule's, and different in every epoch
    settings = {
        "objective": objective.describe(),
        "optimizer": {"class": type(optimizer).__name__, **configuration},
        "schedule": rate,
        "epochs": epochs if isinstance(schedule, Cosine) else None,
        "batch_size": batch_size,
        "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
        "seed": seed,
        "examples": len(images),
        "data": zlib.crc32(labels.tobytes(), zlib.crc32(np.ascontiguousarray(images).data)),
    }
    return json.loads(json.dumps(settings))  # as it comes back from a checkpoint


def _resume(
    folder: Path | None,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    settings: dict[str, Any],
) -> list[dict[str, float]]:
    """Records of the epochs that an earlier call finished, its weights put back."""
    path = checkpoints.newest(folder) if folder else None
    if path is None:
        return []
    state, values = checkpoints.read(path)
    changed = [key for key in settings if state["settings"].get(key) != settings[key]]
    if changed:
        key = changed[0]
        raise SettingsChangedError(
            f"{folder} holds training with another {key}: {state['settings'].get(key)}, now "
            f"{settings[key]}. Give another folder, or delete this one to start again."
        )
    checkpoints.assign(values, model, optimizer)
    return state["records"]


def _write(
    folder: Path,
    epoch: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    settings: dict[str, Any],
    records: list[dict[str, float]],
) -> None:
    """The checkpoint last: until it is there the epoch counts as not finished."""
    losses = [record.get("validation_loss", math.nan) for record in records]
    with atomic_path(folder / "last.keras") as temporary:
        model.save(temporary)
    if math.isfinite(losses[-1]) and losses[-1] == np.nanmin(losses):
        with atomic_path(folder / "best.keras") as temporary:
            model.save(temporary)
    writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
    with writer.as_default(step=epoch + 1):
        for name, value in records[-1].items():
            tf.summary.scalar(name, value)
    writer.close()
    state = {"settings": settings, "records": records}
    checkpoints.save(folder, epoch + 1, model, optimizer, state)
