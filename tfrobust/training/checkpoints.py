"""Training checkpoints: every variable of a model and its optimizer in one checked file an epoch.

A checkpoint is a NumPy archive without pickles, written whole or not at all. The two newest stay.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrobust.errors import TfrobustError
from tfrobust.files import atomic_path

__all__ = ["DamagedCheckpointError", "assign", "newest", "read", "save"]

_PATTERN = re.compile(r"epoch-(\d{6})\.npz")
_KEPT = 2


class DamagedCheckpointError(TfrobustError, RuntimeError):
    """A checkpoint cannot be read, or does not belong to this model."""


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, None where there is none."""
    found = _all(folder)
    return found[-1] if found else None


def save(
    folder: Path,
    epoch: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    state: dict[str, Any],
) -> Path:
    """Write the checkpoint of a finished epoch, counted from 1, and drop all but the newest two.

    Args:
        folder: exists and is writable.
        epoch: epochs finished.
        model: its variables are saved, seeds and moving statistics included.
        optimizer: its slots, step count and learning rate are saved.
        state: anything JSON can hold.

    Raises:
        OSError: the file could not be written; the checkpoints before it are untouched.
    """
    arrays = {
        key: keras.ops.convert_to_numpy(variable)
        for key, variable in _variables(model, optimizer).items()
    }
    path = folder / f"epoch-{epoch:06d}.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, state=np.array(json.dumps(state)), **arrays)
    for old in _all(folder)[:-_KEPT]:
        old.unlink()
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state and the variables' values in a checkpoint.

    Raises:
        DamagedCheckpointError: the file is truncated or otherwise unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = {key: archive[key] for key in archive.files}
        return json.loads(str(values.pop("state"))), values
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        older = [other for other in _all(path.parent) if other != path]
        onward = f"go on from {older[-1].name}" if older else "start again"
        raise DamagedCheckpointError(
            f"the checkpoint {path} is damaged ({error}). Delete it to {onward}."
        ) from error


def assign(
    values: dict[str, np.ndarray], model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> None:
    """Give every variable its value from `read`, or none if they do not all fit.

    Raises:
        DamagedCheckpointError: the values are another model's.
    """
    variables = _variables(model, optimizer)
    if values.keys() != variables.keys():
        different = sorted(values.keys() ^ variables.keys())
        raise DamagedCheckpointError(
            f"the checkpoint is of another model: first difference {different[0]!r}"
        )
    for key, variable in variables.items():
        if values[key].shape != tuple(variable.shape):
            raise DamagedCheckpointError(
                f"the checkpoint is of another model: {key} has shape {values[key].shape}, "
                f"the model's {tuple(variable.shape)}"
            )
    for key, variable in variables.items():
        variable.assign(values[key])


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch-*.npz") if _PATTERN.fullmatch(path.name))


def _variables(
    model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> dict[str, keras.Variable]:
    """Variables by position and own name; automatic layer names differ between processes."""
    named = {}
    for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables)):
        for position, variable in enumerate(variables):
            kind = variable.name if owner == "model" else "slot"
            named[f"{owner}.{position:04d}.{kind}"] = variable
    return named
