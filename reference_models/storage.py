"""Models on disk in the .keras format, loaded in safe mode, each with a provenance file."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import tensorflow as tf

from reference_models.hdf5 import check_hdf5
from tfrobust.errors import InputError, TfrobustError
from tfrobust.files import atomic_path, check_archive, writable_folder

__all__ = ["ModelFileError", "load", "provenance", "save"]

_WEIGHTS = "model.weights.h5"
# key of a record: digest of the model's file
_SHA256 = "sha256"


class ModelFileError(TfrobustError, RuntimeError):
    """A model file is missing, truncated, or needs code that safe mode does not run."""


def save(model: keras.Model, path: str | Path, *, provenance: dict[str, Any] | None = None) -> Path:
    """Write `model` to `path` (.keras) and its provenance to `path`.json, each atomically.

    The record holds the digest of the model's file and is in place before it: a model without its
    record, or with that of another model, is never left behind.

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
        json.dumps(record)
    except TypeError as error:
        raise InputError(f"provenance must be plain JSON: {error}") from error
    writable_folder(path.parent)
    with atomic_path(path) as temporary:
        model.save(temporary)
        text = json.dumps({**record, _SHA256: _sha256(temporary)}, indent=2)
        with atomic_path(_record_path(path)) as beside:
            beside.write_text(text + "\n")
    return path


def load(path: str | Path) -> keras.Model:
    """The model in a .keras file, in safe mode: no code from the file is run.

    Nothing outside the file is read. Where a record of `save` lies beside it, the file is compared
    with the digest in it.

    Raises:
        ModelFileError: no such file, a truncated or other archive, one that would fill the memory
            or refers to other files, not that of its record, or unsafe to load.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}")
    try:
        _check_contents(path)
        if _record_path(path).exists():
            _check_digest(path, provenance(path))
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except ModelFileError:
        raise
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
        content = json.loads(record.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"no provenance beside {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"no provenance beside {path}: {record} is damaged")
    return content


def _check_digest(path: Path, record: dict[str, Any]) -> None:
    known = record.get(_SHA256)  # earlier versions had none
    if known is not None and known != _sha256(path):
        raise ModelFileError(
            f"{path} is not the file that its record {_record_path(path).name} was written with: "
            "it is damaged, or another model. Delete the record if it is not this model's."
        )


def _check_contents(path: Path) -> None:
    """Refuse an archive that would fill the memory, and weights that refer to other files."""
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"its member {damaged} is damaged")
        if _WEIGHTS in archive.namelist():
            with h5py.File(io.BytesIO(archive.read(_WEIGHTS)), "r") as file:
                check_hdf5(file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
