"""Checkpoints of training: named sets of variables in one checked file.

    save(folder, step, {"model": model.variables, "optimizer": optimizer.variables}, state)
    state, values = read(newest(folder))
    assign(values, {"model": model.variables, "optimizer": optimizer.variables})

A checkpoint is a NumPy archive without pickles, written atomically. The two newest are kept.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrobust.errors import TfrobustError
from tfrobust.files import atomic_path, check_archive

__all__ = ["DamagedCheckpointError", "assign", "intact", "newest", "read", "save", "step_of"]

_PATTERN = re.compile(r"step-(\d{9})\.npz")
_KEPT = 2
_STATE = "state"
# what zipfile, zlib, NumPy and json raise for damaged files, and readers of what they held
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


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
    arrays = {key: _as_saved(variable) for key, variable in _by_key(sets).items()}
    path = folder / f"step-{step:09d}.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, **{_STATE: np.array(json.dumps(state))}, **arrays)
    others = [other for other in _all(folder) if other != path]
    for old in others[: 1 - _KEPT]:
        old.unlink(missing_ok=True)
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state and the values in a checkpoint; a value's key is "set.position.name".

    Raises:
        DamagedCheckpointError: the file is truncated or otherwise unreadable.
    """
    with intact(path):
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            values = {key: _as_read(archive[key]) for key in archive.files}
        state = json.loads(str(values.pop(_STATE)))
        return dict(state), values


@contextlib.contextmanager
def intact(path: Path) -> Iterator[None]:
    """In the block, which reads a checkpoint or what was in it, errors name the file.

    Raises:
        DamagedCheckpointError: it is truncated, damaged or otherwise unreadable.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, DamagedCheckpointError):
            raise
        older = [other for other in _all(path.parent) if other != path]
        remedy = f"resume from {older[-1].name}" if older else "start again"
        raise DamagedCheckpointError(
            f"the checkpoint {path} is damaged ({type(error).__name__}: {error}). Delete it to "
            f"{remedy}."
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
    fitting = {key: _fitting(key, values[key], variable) for key, variable in variables.items()}
    for key, variable in variables.items():
        variable.assign(fitting[key])


def _fitting(key: str, value: np.ndarray, variable: keras.Variable) -> np.ndarray:
    """The value as the variable's type.

    Raises:
        DamagedCheckpointError: it has another shape, or is no number.
    """
    if value.shape != tuple(variable.shape) or value.dtype.kind not in "biuf":
        raise DamagedCheckpointError(
            f"the checkpoint is of another model: {key} has shape {value.shape} and type "
            f"{value.dtype}, the model's {tuple(variable.shape)} and {variable.dtype}"
        )
    return value.astype(keras.ops.convert_to_numpy(variable).dtype)


def _as_saved(variable: keras.Variable | np.ndarray) -> np.ndarray:
    """Values as NumPy's archives keep them: types such as bfloat16 as float32, exactly."""
    array = np.asarray(keras.ops.convert_to_numpy(variable))
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _as_read(array: np.ndarray) -> np.ndarray:
    """Of earlier versions, whose archives held bfloat16 as two bytes without a type."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


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
