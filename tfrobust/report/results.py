"""Result files that carry the settings which made them, and a digest of what they hold.

Both are inside the file: it is refused where it is damaged, or of a run with other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfrobust.errors import InputTypeError, TfrobustError
from tfrobust.files import check_archive

__all__ = ["Results", "RunFolderError", "plain_text", "seal_of", "write_json"]

RECORD = "run.json"
# key of the seal in an object, a table's attributes, an archive; and of a list inside an object
_SEAL, _LIST = "tfrobust", "rows"


class RunFolderError(TfrobustError, ValueError):
    """The folder holds a run with other settings, or a damaged record."""


def seal_of(record: Mapping[str, Any]) -> str:
    """Digest of the settings, and of the files that they name, in what `run.json` holds."""
    text = json.dumps([record["settings"], record.get("files", {})], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Results:
    """The results in a run folder, to be read.

    Args:
        folder: of the run.
        seal: of its settings; None for a run of an earlier version, whose files have none.
    """

    def __init__(self, folder: Path, seal: str | None):
        self.folder, self.seal = folder, seal

    @classmethod
    def open(cls, folder: str | Path) -> Results:
        """The results of the run that `run.json` describes.

        Raises:
            RunFolderError: the record is missing or damaged.
        """
        folder = Path(folder)
        return cls(folder, read_record(folder).get("results"))

    @property
    def record(self) -> dict[str, Any]:
        """Settings, start and versions, as `run.json` holds them.

        Raises:
            RunFolderError: the record is missing or damaged.
        """
        return read_record(self.folder)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / name).exists()

    def read_json(self, name: str) -> Any:
        """The plain data in a file.

        Raises:
            RunFolderError: the file is missing or damaged, or of other settings.
        """
        path = self.folder / name
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(path, error) from error
        seal = content.pop(_SEAL, None) if isinstance(content, dict) else None
        if isinstance(seal, dict) and seal.get("list"):
            content = content.get(_LIST)
        self._check(path, seal, lambda: _json_sha256(content))
        return content

    def read_frame(self, name: str) -> pd.DataFrame:
        """The table in a Parquet file, whose pages' checksums are compared.

        Raises:
            RunFolderError: the file is missing or damaged, or of other settings.
        """
        path = self.folder / name
        try:
            frame = pd.read_parquet(path, page_checksum_verification=True)
        except Exception as error:  # pyarrow raises many kinds
            raise _unreadable(path, error) from error
        self._check(path, frame.attrs.pop(_SEAL, None), lambda: _frame_sha256(frame))
        return frame

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The named arrays in a NumPy archive.

        Raises:
            RunFolderError: the file is missing or damaged, or of other settings.
        """
        path = self.folder / name
        try:
            check_archive(path)
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            seal = json.loads(str(arrays.pop(_SEAL))) if _SEAL in arrays else None
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds
            raise _unreadable(path, error) from error
        self._check(path, seal, lambda: _arrays_sha256(arrays))
        return arrays

    def check_seal(self, name: str, settings: Any) -> None:
        """Refuse a file by the digest of the settings that it carries.

        Raises:
            RunFolderError: they are unknown or others; names the file.
        """
        if self.seal is None or settings == self.seal:
            return
        which = "unknown" if settings is None else "other"
        raise RunFolderError(
            f"{self.folder / name} is the result of {which} settings. Give another folder, or "
            "delete this file to compute it again."
        )

    def _check(self, path: Path, seal: Any, digest: Any) -> None:
        seal = seal if isinstance(seal, dict) else {}
        self.check_seal(str(path.relative_to(self.folder)), seal.get("settings"))
        known = seal.get("content")
        if known is not None and known != digest():
            raise _unreadable(path, "its contents have changed since it was written")


def read_record(folder: Path) -> dict[str, Any]:
    """What `run.json` holds.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
        known = record.get("results")
        if not isinstance(record["settings"], dict) or known not in (None, seal_of(record)):
            raise _unreadable(path, "its contents have changed since it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, RunFolderError):
            raise
        raise _unreadable(path, error) from error
    return record


def write_json(path: Path, value: Any, seal: str | None) -> None:
    """Write plain data; NumPy numbers and arrays become numbers and lists."""
    value = json.loads(plain_text(value))
    if seal is not None:
        stamp: dict[str, Any] = {"settings": seal, "content": _json_sha256(value)}
        if isinstance(value, dict):
            value = {**value, _SEAL: stamp}
        else:
            value = {_LIST: value, _SEAL: {**stamp, "list": True}}
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_frame(path: Path, frame: pd.DataFrame, seal: str | None) -> None:
    """Write a table with a checksum in each page; its index is left out."""
    frame = frame.reset_index(drop=True)  # a copy, so that the caller's has no seal
    if seal is not None:
        frame.attrs = {_SEAL: {"settings": seal, "content": _frame_sha256(frame)}}
    frame.to_parquet(path, index=False, write_page_checksum=True)
    if seal is not None and _frame_sha256(pd.read_parquet(path)) != frame.attrs[_SEAL]["content"]:
        # columns of a type that Parquet changes: their pages' checksums must do
        del frame.attrs[_SEAL]["content"]
        frame.to_parquet(path, index=False, write_page_checksum=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], seal: str | None) -> None:
    """Write named arrays, compressed."""
    stamp = {}
    if seal is not None:
        text = json.dumps({"settings": seal, "content": _arrays_sha256(arrays)})
        stamp = {_SEAL: np.array(text)}
    np.savez_compressed(path, **arrays, **stamp)


def plain_text(value: Any) -> str:
    """`value` as JSON; NumPy numbers and arrays become numbers and lists."""
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise InputTypeError(f"{type(value).__name__} cannot be written as JSON")


def _unreadable(path: Path, reason: Any) -> RunFolderError:
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {reason}"
    return RunFolderError(
        f"{path} cannot be read ({reason}). Delete it to compute it again, with the same settings."
    )


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _frame_sha256(frame: pd.DataFrame) -> str:
    """Of names and values, whatever form pandas gives to texts and to what is missing."""
    result = hashlib.sha256()
    for name, column in frame.items():
        values = column.to_numpy()
        if values.dtype.kind not in "biuf":
            missing = column.isna()
            texts = ["" if gone else str(each) for each, gone in zip(values, missing, strict=True)]
            result.update(json.dumps([str(name), texts]).encode())
            continue
        result.update(f"{name} {values.dtype} {len(values)}".encode())
        if values.dtype.kind == "f":  # one kind of NaN
            values = np.where(np.isnan(values), values.dtype.type("nan"), values)
        result.update(np.ascontiguousarray(values).tobytes())
    return result.hexdigest()


def _arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    result = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        result.update(f"{name} {array.dtype.str} {array.shape}".encode())
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()
