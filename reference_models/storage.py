"""Models on disk in the .keras format, loaded in safe mode, each with a provenance file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfrobust.errors import InputError, TfrobustError
from tfrobust.files import atomic_path, writable_folder

__all__ = ["ModelFileError", "load", "provenance", "save"]


class ModelFileError(TfrobustError, RuntimeError):
    """A model file is missing, truncated, or needs code that safe mode does not run."""


def save(model: keras.Model, path: str | Path, *, provenance: dict[str, Any] | None = None) -> Path:
    """Write `model` to `path` (.keras) and its provenance to `path`.json, each atomically.

    Args:
        model: any Keras model.
        path: ends in .keras.
        provenance: plain data, stored as JSON; versions and the parameter count are added.

    Raises:
        InputError: the path does not end in .keras, or JSON cannot hold the provenance.
        StorageError: the folder is not writable, or the disk is full; no file is partly written.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"a model's file name ends in .keras, got {path.name!r}")
    record = {
        "model": model.name,
        "parameters": model.count_params(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        **(provenance or {}),
    }
    try:
        text = json.dumps(record, indent=2)
    except TypeError as error:
        raise InputError(f"provenance must be plain JSON: {error}") from error
    writable_folder(path.parent)
    with atomic_path(path) as temporary:
        model.save(temporary)
    with atomic_path(_record_path(path)) as temporary:
        temporary.write_text(text + "\n")
    return path


def load(path: str | Path) -> keras.Model:
    """The model in a .keras file, in safe mode: no code from the file is run.

    Raises:
        ModelFileError: no such file, a truncated or other archive, or unsafe to load.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # the readers that Keras calls raise many kinds
        raise ModelFileError(
            f"{path} cannot be loaded as a Keras model ({type(error).__name__}: {error}). It is "
            "truncated, not in the .keras format, or needs code that safe mode does not run."
        ) from error


def provenance(path: str | Path) -> dict[str, Any]:
    """The record that `save` wrote beside a model.

    Raises:
        ModelFileError: the record is missing or damaged.
    """
    record = _record_path(Path(path))
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"no provenance beside {path}: {error}") from error


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
