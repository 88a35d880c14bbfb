"""Checkpoints of training: named sets of variables in one checked file.

    save(folder, step, {"model": model.variables, "optimizer": optimizer.variables}, state)
    state, values = read(newest(folder))
    assign(values, {"model": model.variables, "optimizer": optimizer.variables})

A checkpoint is a NumPy archive without pickles, written atomically. The two newest are kept.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrobust.errors import TfrobustError
from tfrobust.files import atomic_path

__all__ = ["DamagedCheckpointError", "assign", "newest", "read", "save", "step_of"]

_PATTERN = re.compile(r"step-(\d{9})\.npz")
_KEPT = 2
_STATE = "state"


class DamagedCheckpointError(TfrobustError, RuntimeError):
    """A checkpoint cannot be read, or is of other variables."""


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, None where there is none."""
    paths = _all(folder)
    return paths[-1] if paths else None


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(_PATTERN.fullmatch(path.name).group(1))


def save(
    folder: Path,
    step: int,
    sets: Mapping[str, Sequence[keras.Variable | np.ndarray]],
    state: dict[str, Any],
) -> Path:
    """Write the checkpoint after a step, and delete all but the newest two.

    Args:
        folder: exists and is writable.
        step: steps taken since training began.
        sets: variables or arrays by the name of their set. A model's variables include its seeds
            and moving statistics, an optimizer's its slots, step count and learning rate.
        state: plain data, stored as JSON.

    Raises:
        OSError: the file could not be written; earlier checkpoints are unchanged.
    """
    arrays = {key: keras.ops.convert_to_numpy(variable) for key, variable in _by_key(sets).items()}
    path = folder / f"step-{step:09d}.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, **{_STATE: np.array(json.dumps(state))}, **arrays)
    for old in _all(folder)[:-_KEPT]:
        old.unlink()
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state and the values in a checkpoint; a value's key is "set.position.name".

    Raises:
        DamagedCheckpointError: the file is truncated or otherwise unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = {key: archive[key] for key in archive.files}
        return json.loads(str(values.pop(_STATE))), values
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        older = [other for other in _all(path.parent) if other != path]
        remedy = f"resume from {older[-1].name}" if older else "start again"
        raise DamagedCheckpointError(
            f"the checkpoint {path} is damaged ({error}). Delete it to {remedy}."
        ) from error


def assign(values: Mapping[str, np.ndarray], sets: Mapping[str, Sequence[keras.Variable]]) -> None:
    """Assign the values from `read` to all variables, or to none if one does not fit.

    Raises:
        DamagedCheckpointError: the values are of other variables.
    """
    variables = _by_key(sets)
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
    return sorted(path for path in folder.glob("step-*.npz") if _PATTERN.fullmatch(path.name))


def _by_key(sets: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Variables by set, position and name, without the numbers of automatic names."""
    keys = {}
    for name, variables in sets.items():
        for position, variable in enumerate(variables):
            kind = re.sub(r"_\d+", "", getattr(variable, "name", "array"))
            keys[f"{name}.{position:04d}.{kind}"] = variable
    return keys
