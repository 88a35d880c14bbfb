"""The folder of a call of `fit`: checkpoints, the last and best model, TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import all_layers
from tfrobust.data import Stream
from tfrobust.distribution import (
    gather_rows,
    is_chief,
    replica_count,
    replica_values,
    set_replica_values,
)
from tfrobust.errors import InputTypeError, StorageError, TfrobustError
from tfrobust.files import atomic_path
from tfrobust.locks import FolderLock
from tfrobust.objectives import Objective
from tfrobust.saliency import architecture_sha256
from tfrobust.training import checkpoints
from tfrobust.training.loop import Progress
from tfrobust.training.precision import LossScale
from tfrobust.training.schedules import Schedule

__all__ = ["RunFolder", "SettingsChangedError", "run_settings"]

Records = list[dict[str, float]]
# key of the moving statistics per replica, in checkpoints within an epoch
_PER_REPLICA = "replicas"
# settings that checkpoints of earlier versions do not hold
_ADDED = ("architecture", "precision")


class SettingsChangedError(TfrobustError, ValueError):
    """The folder holds training with other settings or data, or workers see different folders."""


def run_settings(
    objective: Objective,
    optimizer: keras.optimizers.Optimizer,
    schedule: Schedule | None,
    epochs: int,
    batch_size: int,
    seed: int,
    data: Stream,
    model: keras.Model,
) -> dict[str, Any]:
    """Settings that a resumed run must share; `epochs` only where the schedule depends on it."""
    rate = None
    configuration = {k: v for k, v in optimizer.get_config().items() if k != "name"}
    if schedule is not None:
        rate = {"schedule": type(schedule).__name__, **dataclasses.asdict(schedule)}
        configuration.pop("learning_rate", None)  # set by the schedule in every epoch
    settings = {
        "objective": objective.describe(),
        "optimizer": {"class": type(optimizer).__name__, **configuration},
        "schedule": rate,
        "epochs": epochs if schedule is not None and schedule.needs_epochs else None,
        "batch_size": batch_size,
        "replicas": replica_count(),
        "seed": seed,
        "examples": data.examples,
        "data": data.fingerprint(),
        "precision": sorted({layer.compute_dtype for layer in all_layers(model)}),
        "architecture": architecture_sha256(model),
    }
    return json.loads(json.dumps(settings, default=_plain))  # as read from a checkpoint


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, which settings may hold, as plain data."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise InputTypeError(f"a setting of type {type(value).__name__} cannot be kept in a checkpoint")


class RunFolder:
    """The folder of a run, held from `with`; without one, all methods but `resume` do nothing.

    All workers call all methods; the chief writes, and keeps other processes out.

    Args:
        path: None to keep nothing.
        settings: of `run_settings`.
        model: saved with its optimizer.
        optimizer: built.
        loss_scale: None without one.
        epochs: to be trained in all.
    """

    def __init__(
        self,
        path: str | Path | None,
        settings: dict[str, Any],
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss_scale: LossScale | None,
        epochs: int,
    ):
        self._path = None if path is None else Path(path)
        self._settings, self._model, self._loss_scale = settings, model, loss_scale
        self._epochs = epochs
        self._sets = {"model": model.variables, "optimizer": optimizer.variables}
        self._lock: FolderLock | None = None
        self._writer: tf.summary.SummaryWriter | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        """Hold the folder.

        Raises:
            FolderInUseError: another process or call is training in it.
            OSError: the folder is not writable.
        """
        if self._path is not None and is_chief():
            self._lock = self._stack.enter_context(FolderLock.for_one_call(self._path))
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock = None
        if self._writer is not None:
            with contextlib.suppress(tf.errors.OpError):  # what is lost was flushed or reported
                self._writer.close()
        self._stack.close()

    def resume(self) -> tuple[Records, Progress | None]:
        """Records of the finished epochs and progress of the next one; restores the variables.

        Raises:
            SettingsChangedError: settings or data have changed, or workers see different folders.
            DamagedCheckpointError: the newest checkpoint cannot be read.
        """
        path = checkpoints.newest(self._path) if self._path else None
        steps = gather_rows(np.array([checkpoints.step_of(path) if path else 0])).tolist()
        if len(set(steps)) > 1:
            raise SettingsChangedError(
                f"workers see different checkpoints in {self._path}: of steps {steps}. Choose a "
                "folder on storage that all workers share."
            )
        if path is None:
            return [], None
        state, values = checkpoints.read(path)
        with checkpoints.intact(path):
            known, records = dict(state["settings"]), [dict(each) for each in state["records"]]
            progress = state["progress"] and Progress(**state["progress"])
            scale = LossScale()
            if self._loss_scale is not None:
                scale.restore(state["loss_scale"])
        self._check_settings(known)
        if len(records) + (progress is not None) > self._epochs:
            raise SettingsChangedError(
                f"{self._path} holds training in epoch {len(records) + (progress is not None)}, "
                f"now epochs={self._epochs}. Give at least as many, or another folder."
            )
        self._restore(path, values)
        if self._loss_scale is not None:
            self._loss_scale.value, self._loss_scale.good_steps = scale.value, scale.good_steps
        return records, progress

    def _check_settings(self, known: dict[str, Any]) -> None:
        for key, current in self._settings.items():
            if key not in known and key in _ADDED:
                continue  # a checkpoint of an earlier version
            if known.get(key) != current:
                raise SettingsChangedError(
                    f"{self._path} holds training with another {key}: {known.get(key)}, now "
                    f"{current}. Give another folder, or delete this one to start again."
                )

    def restore_weights(self) -> None:
        """Restore all variables from the newest checkpoint, if there is one."""
        path = checkpoints.newest(self._path) if self._path else None
        if path is not None:
            self._restore(path, checkpoints.read(path)[1])

    def checkpoint(self, step: int, records: Records, progress: Progress | None = None) -> None:
        """Save after a total of `step` steps; within an epoch with its progress."""
        if self._path is None:
            return
        sets = dict(self._sets)
        # within an epoch moving statistics differ between replicas
        if progress is not None and replica_count() > 1:
            sets[_PER_REPLICA] = [replica_values(self._model.non_trainable_variables)]
        if not is_chief():
            return
        self._lock.check()
        state = {
            "settings": self._settings,
            "records": records,
            "loss_scale": None if self._loss_scale is None else self._loss_scale.state(),
            "progress": None if progress is None else dataclasses.asdict(progress),
        }
        checkpoints.save(self._path, step, sets, state)

    def end_epoch(self, step: int, records: Records) -> None:
        """Save the model and the newest record, then the checkpoint, which ends the epoch."""
        if self._path is None:
            return
        if is_chief():
            self._lock.check()
            losses = [record.get("validation_loss", math.nan) for record in records]
            self._save_model("last.keras")
            if math.isfinite(losses[-1]) and losses[-1] == np.nanmin(losses):
                self._save_model("best.keras")
            self._write_scalars(len(records), records[-1])
        self.checkpoint(step, records)

    def _write_scalars(self, epoch: int, record: dict[str, float]) -> None:
        """For TensorBoard, in one file per call of `fit`."""
        place = self._path / "tensorboard"
        try:
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(place))
            with self._writer.as_default(step=epoch):
                for name, value in record.items():
                    tf.summary.scalar(name, value)
            self._writer.flush()
        except tf.errors.OpError as error:
            raise StorageError(
                f"could not write {place}: {error.message}. Earlier checkpoints are kept."
            ) from error

    def _save_model(self, name: str) -> None:
        with atomic_path(self._path / name) as temporary:
            self._model.save(temporary)

    def _restore(self, path: Path, values: dict[str, np.ndarray]) -> None:
        variables = self._model.non_trainable_variables
        per_replica = [values.pop(key) for key in list(values) if key.startswith(_PER_REPLICA)]
        with checkpoints.intact(path):
            if per_replica and per_replica[0].shape[:1] != (replica_count(),):
                raise checkpoints.DamagedCheckpointError(
                    f"the checkpoint is of {len(per_replica[0])} devices, not {replica_count()}"
                )
        checkpoints.assign(values, self._sets)
        for array in per_replica:
            set_replica_values(variables, array)
