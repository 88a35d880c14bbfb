"""fit(): the one training loop.

Not `keras.Model.fit`: objectives need second derivatives, a killed run must go on where it was,
and `model.fit` fails under MultiWorkerMirroredStrategy in Keras 3 (keras-team/keras#20585).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from tfrobust.classifier import (
    as_images,
    as_labels,
    classes_of,
    compiled,
    logits_model,
    model_input_shape,
)
from tfrobust.data import Arrays, Stream
from tfrobust.distribution import average, gather_rows, host, hosts, is_chief, replicas
from tfrobust.errors import InputError, TfrobustError
from tfrobust.files import atomic_path, writable_folder
from tfrobust.objectives import Objective, Term
from tfrobust.training import checkpoints
from tfrobust.training.loop import Loop, NonFiniteLossError, WorkerLostError, worker_losses
from tfrobust.training.schedules import Cosine, Schedule

__all__ = [
    "History",
    "NonFiniteLossError",
    "SettingsChangedError",
    "WorkerLostError",
    "evaluate",
    "fit",
]

# of a record, beside the objective's terms and the validation's scores
_COLUMNS = {"epoch", "learning_rate", "accuracy", "loss_scale", "skipped_steps", "seconds"}

Pair = tuple[Any, Any]
Callback = Callable[[dict[str, float], keras.Model], None]


class SettingsChangedError(TfrobustError, ValueError):
    """The folder holds training with other settings or other data, or hosts see different ones."""


@dataclasses.dataclass(frozen=True)
class History:
    """What was seen in training: one record an epoch."""

    records: tuple[dict[str, float], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row an epoch: learning rate, each part of the objective, accuracies, seconds."""
        return pd.DataFrame(list(self.records))


def fit(
    model: keras.Model,
    data: Pair | Stream,
    objective: Objective | Term,
    *,
    optimizer: keras.optimizers.Optimizer,
    epochs: int,
    batch_size: int = 100,
    schedule: Schedule | None = None,
    validation: Pair | Stream | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    jit: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Minimise `objective` over the model's trainable weights.

    Runs under the `tf.distribute` strategy in whose scope it is called, on one device, several, or
    several hosts; model and optimizer are made in that scope too. `batch_size` is the global batch:
    each device takes an equal part of it, gradients are those of the mean over the whole batch, and
    any number of devices sees the same batches. Only batch normalisation in training mode and
    dropout know a difference: statistics are a device's own unless its layers are `synchronized`,
    and every device draws the same dropout mask. Moving averages are averaged over devices after
    each epoch. Only the first host writes; every host must see its folder.

    Each epoch visits the examples in an order drawn from (seed, epoch) and leaves out the last
    incomplete batch. With a `folder`, every epoch ends with a checkpoint, `last.keras`,
    `best.keras` (lowest validation loss) and TensorBoard scalars in it. The same call with the
    same folder goes on after the last finished epoch and ends with the weights of an undisturbed
    run.

    A model whose layers compute in float16 (`tfrobust.precision.computing_in`) is trained with a
    dynamic loss scale; steps whose gradients overflow are skipped and counted.

    Args:
        model: any Keras classifier; a final softmax is left out of the objective.
        data: images (count, *input) in the model's input space and labels (count,), or a `Stream`.
        objective: a term or a sum of terms of `tfrobust.objectives`.
        optimizer: a fresh Keras optimizer; its own learning rate holds unless `schedule` is given.
        epochs: passes over the data in all, finished ones included.
        batch_size: examples a step, over all devices and hosts.
        schedule: learning rate of each epoch.
        validation: data whose loss (mean cross-entropy) and accuracy end each epoch.
        folder: where checkpoints go; nothing is written where None.
        seed: of the order of examples. Weights and dropout have the seeds they were built with.
        jit: compile gradients with XLA; pays on GPUs, not on CPUs.
        callbacks: called after each epoch, on every host, with its record and the model.
        progress: show a bar with the parts of the objective.

    Returns:
        `History`, of finished epochs of earlier calls too.

    Raises:
        ValueError: malformed data, fewer examples than a batch, a batch that the devices cannot
            share equally, or a schedule without what it monitors.
        SettingsChangedError: the folder holds training with other settings or data, or hosts do not
            see the same folder.
        DamagedCheckpointError: the newest checkpoint cannot be read.
        NonFiniteLossError: the objective is infinite or NaN; names epoch, step and setting. The
            model goes back to the last checkpoint if there is one.
        WorkerLostError: another host is gone.
        OSError: the folder is not writable, or the disk is full.
    """
    objective = objective if isinstance(objective, Objective) else Objective((objective,))
    taken = sorted(term.name for term in objective.terms if _is_column(term.name))
    if taken:
        raise InputError(f"a term cannot be named {taken[0]!r}: records have a column of that name")
    data = _stream(model, data, "data")
    if data.examples < batch_size:
        raise InputError(f"{data.examples} examples do not fill one batch of {batch_size}")
    if validation is not None:
        validation = _stream(model, validation, "validation")
    if schedule is not None and _needs_validation(schedule) and validation is None:
        raise InputError(f"{type(schedule).__name__} monitors the validation loss: give validation")
    path = None if folder is None else Path(folder)
    if path is not None and is_chief():
        writable_folder(path)

    some = np.zeros((1, *data.input_shape), np.float32)
    loop = Loop(model, logits_model(model, some), objective, optimizer, data, batch_size, seed, jit)
    settings = _settings(objective, optimizer, schedule, epochs, batch_size, seed, data)
    records = _resume(path, model, optimizer, settings, loop)
    steps = loop.steps
    quiet = not (progress and is_chief())
    with tqdm(total=steps, disable=quiet or None, leave=False, unit="step", delay=1) as bar:
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
            with worker_losses():
                average(model.non_trainable_variables)
                if validation is not None:
                    scores = evaluate(model, validation, batch_size=batch_size)
                    record |= {f"validation_{name}": score for name, score in scores.items()}
            record["seconds"] = round(time.perf_counter() - started, 3)
            records.append(record)
            if path is not None and is_chief():
                _write(path, epoch, model, optimizer, settings, records, loop)
            for callback in callbacks:
                callback(record, model)
    with worker_losses():  # so that what the first host wrote last is there for all
        gather_rows(np.zeros(1))
    return History(tuple(records))


def evaluate(
    model: keras.Model, x: Any, labels: Any = None, *, batch_size: int = 100
) -> dict[str, float]:
    """Mean cross-entropy and accuracy of a classifier: `loss`, `accuracy`.

    Runs on all devices and hosts of the `tf.distribute` strategy in scope.

    Args:
        model: any Keras classifier.
        x: (count, *input), or a `Stream` of images and labels.
        labels: (count,); left out with a `Stream`.
        batch_size: examples a call.

    Raises:
        ValueError: malformed inputs or labels.
    """
    data = _stream(model, x if isinstance(x, Stream) else (x, labels), "x")

    def build(logits: keras.Model) -> Callable[..., Any]:
        def run(rows: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            values = tf.cast(logits(rows, training=False), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, values)
            return losses, tf.argmax(values, axis=1, output_type=tf.int32) == classes

        return run

    run = compiled(model, "evaluate", build, np.zeros((1, *data.input_shape), np.float32))
    sums = np.zeros(3)
    with data.errors():
        for rows, classes in data.evaluation_batches(batch_size, hosts=hosts(), host=host()):
            losses, correct = run(rows, classes)
            sums += [np.sum(losses, dtype=np.float64), np.sum(correct), len(losses)]
    loss, hits, count = gather_rows(sums[None]).sum(axis=0)
    return {"loss": float(loss / count), "accuracy": float(hits / count)}


def _is_column(name: str) -> bool:
    """Whether records have a column of this name beside the objective's terms."""
    return name.startswith("validation_") or name in _COLUMNS


def _rate(optimizer: keras.optimizers.Optimizer) -> float:
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _stream(model: keras.Model, data: Pair | Stream, name: str) -> Stream:
    """Data as a stream whose examples the model can take."""
    if isinstance(data, Stream):
        expected = model_input_shape(model)
        pairs = zip(expected or (), data.input_shape, strict=False)
        if expected is not None and (
            len(expected) != len(data.input_shape)
            or any(want is not None and want != have for want, have in pairs)
        ):
            raise InputError(
                f"{name} has images {data.input_shape}, but the model takes {expected}"
            )
        classes = classes_of(model, np.zeros((1, *data.input_shape), np.float32))
        if data.classes > classes:
            raise InputError(f"{name} has {data.classes} classes, the model {classes}")
        return data
    try:
        images, labels = data
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a pair, images and labels, or a Stream") from None
    images = as_images(model, images, f"{name} images")
    classes = classes_of(model, images[:1])
    return Arrays(images, as_labels(labels, len(images), classes, f"{name} labels"), classes)


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
    data: Stream,
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
        "replicas": replicas(),
        "seed": seed,
        "examples": data.examples,
        "data": data.fingerprint(),
    }
    return json.loads(json.dumps(settings))  # as it comes back from a checkpoint


def _resume(
    folder: Path | None,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    settings: dict[str, Any],
    loop: Loop,
) -> list[dict[str, float]]:
    """Records of the epochs that an earlier call finished, its weights put back."""
    path = checkpoints.newest(folder) if folder else None
    seen = gather_rows(np.array([int(path.stem.rpartition("-")[2]) if path else 0]))
    if len(set(seen.tolist())) > 1:
        raise SettingsChangedError(
            f"hosts see different checkpoints in {folder}: finished epochs {seen.tolist()}. Choose "
            "a folder on storage that all hosts share."
        )
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
    if loop.loss_scale is not None:
        loop.loss_scale.restore(state["loss_scale"])
    return state["records"]


def _write(
    folder: Path,
    epoch: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    settings: dict[str, Any],
    records: list[dict[str, float]],
    loop: Loop,
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
    scale = None if loop.loss_scale is None else loop.loss_scale.state()
    state = {"settings": settings, "records": records, "loss_scale": scale}
    checkpoints.save(folder, epoch + 1, model, optimizer, state)
