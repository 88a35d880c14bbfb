"""The folder of a call of `fit`: checkpoints, the last and best model, TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.data import Stream
from tfrobust.distribution import (
    gather_rows,
    is_chief,
    replica_count,
    replica_values,
    set_replica_values,
)
from tfrobust.errors import TfrobustError
from tfrobust.files import atomic_path, writable_folder
from tfrobust.objectives import Objective
from tfrobust.training import checkpoints
from tfrobust.training.loop import Progress
from tfrobust.training.precision import LossScale
from tfrobust.training.schedules import Schedule

__all__ = ["RunFolder", "SettingsChangedError", "run_settings"]

Records = list[dict[str, float]]
# key of the moving statistics per replica, in checkpoints within an epoch
_PER_REPLICA = "replicas"


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
    }
    return json.loads(json.dumps(settings))  # as read from a checkpoint


class RunFolder:
    """The folder of a run; without one, all methods but `resume` do nothing.

    All workers call all methods; the chief writes.

    Args:
        path: None to keep nothing.
        settings: of `run_settings`.
        model: saved with its optimizer.
        optimizer: built.
        loss_scale: None without one.

    Raises:
        OSError: the folder is not writable.
    """

    def __init__(
        self,
        path: str | Path | None,
        settings: dict[str, Any],
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss_scale: LossScale | None,
    ):
        self._path = None if path is None else Path(path)
        self._settings, self._model, self._loss_scale = settings, model, loss_scale
        self._sets = {"model": model.variables, "optimizer": optimizer.variables}
        if self._path is not None and is_chief():
            writable_folder(self._path)

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
        for key, current in self._settings.items():
            previous = state["settings"].get(key)
            if previous != current:
                raise SettingsChangedError(
                    f"{self._path} holds training with another {key}: {previous}, now {current}. "
                    "Give another folder, or delete this one to start again."
                )
        self._restore(values)
        if self._loss_scale is not None:
            self._loss_scale.restore(state["loss_scale"])
        progress = state["progress"]
        return state["records"], None if progress is None else Progress(**progress)

    def restore_weights(self) -> None:
        """Restore all variables from the newest checkpoint, if there is one."""
        path = checkpoints.newest(self._path) if self._path else None
        if path is not None:
            self._restore(checkpoints.read(path)[1])

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
            losses = [record.get("validation_loss", math.nan) for record in records]
            self._save_model("last.keras")
            if math.isfinite(losses[-1]) and losses[-1] == np.nanmin(losses):
                self._save_model("best.keras")
            writer = tf.summary.create_file_writer(str(self._path / "tensorboard"))
            with writer.as_default(step=len(records)):
                for name, value in records[-1].items():
                    tf.summary.scalar(name, value)
            writer.close()
        self.checkpoint(step, records)

    def _save_model(self, name: str) -> None:
        with atomic_path(self._path / name) as temporary:
            self._model.save(temporary)

    def _restore(self, values: dict[str, np.ndarray]) -> None:
        per_replica = [values.pop(key) for key in list(values) if key.startswith(_PER_REPLICA)]
        checkpoints.assign(values, self._sets)
        for array in per_replica:
            set_replica_values(self._model.non_trainable_variables, array)
