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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from tfrobust import checkpoints
from tfrobust.batches import as_images, as_labels, in_batches
from tfrobust.differentiate import classes_of, compiled, logits_model
from tfrobust.files import atomic_path, writable_folder
from tfrobust.objectives import Objective, _Term
from tfrobust.schedules import Cosine, Schedule

__all__ = ["History", "NonFiniteLossError", "SettingsChangedError", "evaluate", "fit"]

Arrays = tuple[Any, Any]
Callback = Callable[[dict[str, float], keras.Model], None]


class NonFiniteLossError(ArithmeticError):
    """The objective became infinite or NaN."""


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

    loop = _Loop(model, objective, optimizer, images, labels, batch_size, seed)
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


class _Loop:
    """The compiled steps of one call of fit."""

    def __init__(
        self,
        model: keras.Model,
        objective: Objective,
        optimizer: keras.optimizers.Optimizer,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
    ):
        self.model = model
        self.objective = objective
        self.images, self.labels = tf.constant(images), tf.constant(labels)
        self.batch_size = batch_size
        self.seed = seed
        self.steps = len(images) // batch_size
        self.strategy = tf.distribute.get_strategy()
        optimizer.build(model.trainable_variables)
        self.run = self._compile(logits_model(model, images), optimizer)

    def _compile(
        self, logits: keras.Model, optimizer: keras.optimizers.Optimizer
    ) -> Callable[..., Any]:
        objective, strategy, variables = self.objective, self.strategy, logits.trainable_variables
        replicas = strategy.num_replicas_in_sync
        names = [*(term.name for term in objective.terms), "accuracy"]

        def step(x: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                batch = objective.forward(logits, x, labels, training=True)
                parts = objective.parts(batch)
                # the optimizer sums over replicas
                total = tf.add_n(list(parts.values())) / replicas
            optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
            hits = tf.argmax(batch.logits, axis=1, output_type=tf.int32) == labels
            return {**parts, "accuracy": tf.reduce_mean(tf.cast(hits, tf.float32))}

        @tf.function
        def run(iterator: Any, count: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            totals = {name: tf.constant(0.0) for name in names}
            done = tf.constant(0)
            finite = tf.constant(True)
            while tf.logical_and(done < count, finite):
                x, labels = next(iterator)
                each = strategy.run(step, args=(x, labels))
                parts = {name: strategy.reduce("MEAN", each[name], axis=None) for name in names}
                finite = tf.math.is_finite(tf.add_n([parts[name] for name in names]))
                totals = {name: totals[name] + parts[name] for name in names}
                done += 1
            return totals, done

        return run

    def _batches(self, epoch: int) -> Iterable[Any]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        batches = (
            tf.data.Dataset.from_tensor_slices(order)
            .batch(self.batch_size, drop_remainder=True)
            .map(lambda rows: (tf.gather(self.images, rows), tf.gather(self.labels, rows)))
            .prefetch(2)
        )
        if self.strategy.num_replicas_in_sync > 1:
            return self.strategy.experimental_distribute_dataset(batches)
        return batches

    def epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass; the mean of each part over its steps."""
        iterator = iter(self._batches(epoch))
        sums: dict[str, float] = {}
        finished = 0
        call = min(20, self.steps)  # steps between looks at the loss
        while finished < self.steps:
            totals, done = self.run(iterator, tf.constant(min(call, self.steps - finished)))
            totals = {name: float(value) for name, value in totals.items()}
            finished += int(done)
            if not all(map(math.isfinite, totals.values())):
                raise NonFiniteLossError(self._message(epoch, finished, totals))
            for name, value in totals.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update(int(done))
            bar.set_postfix({name: f"{value / int(done):.3g}" for name, value in totals.items()})
        for variable in self.model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise NonFiniteLossError(self._message(epoch, finished, {variable.path: math.nan}))
        return {name: value / self.steps for name, value in sums.items()}

    def _message(self, epoch: int, step: int, parts: dict[str, float]) -> str:
        bad = ", ".join(name for name, value in parts.items() if not math.isfinite(value))
        return (
            f"{bad} is not finite in epoch {epoch + 1}, step {step} of {self.steps}. "
            f"Objective: {self.objective.describe()}. Lower the learning rate or the weights of "
            "the penalties; checkpoints of earlier epochs are kept."
        )


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
