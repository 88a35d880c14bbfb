"""Run folders: a record of settings and versions, and steps whose results are whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tfrobust.distribution import broadcast_from_chief, is_chief
from tfrobust.errors import InputTypeError, TfrobustError
from tfrobust.files import atomic_path, writable_folder

__all__ = ["Run", "RunFolderError", "versions"]

_PACKAGES = (
    "tfrobust",
    "tensorflow",
    "keras",
    "numpy",
    "foolbox",
    "tensorflow-datasets",
    "scikit-learn",
    "pandas",
)


class RunFolderError(TfrobustError, ValueError):
    """The folder holds a run with other settings, or a damaged record."""


def versions() -> dict[str, str]:
    """Versions of Python and the packages, and the machine, on which results depend."""
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result["machine"] = f"{platform.system()} {platform.machine()}, {_processor()}, {cores} cores"
    return result


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


class Run:
    """A folder of one experiment's results.

    With several workers, all make the same calls, the chief writes, and all read the folder.

    Args:
        folder: created where it does not exist; a run in it with the same settings is resumed.
        settings: a frozen dataclass.
        files: files on which results depend, by the name of their setting; compared by content.

    Raises:
        OSError: the folder is not writable, or one of the files cannot be read.
        RunFolderError: the folder holds a run with other settings, or with files of other content.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Any,
        *,
        files: Mapping[str, str | Path] = MappingProxyType({}),
    ):
        digests = {name: _sha256(path) for name, path in files.items()}
        self.folder = writable_folder(folder) if is_chief() else Path(folder)
        self.settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        if self.has("run.json"):
            record = self.read_json("run.json")
            # settings introduced after the record was written had their default values
            recorded = _defaults(settings) | record["settings"]
            names = sorted(recorded.keys() | self.settings.keys())
            changed = [name for name in names if recorded.get(name) != self.settings.get(name)]
            if changed:
                name = changed[0]
                raise RunFolderError(
                    f"{self.folder} holds a run with {name} = {recorded.get(name)}, now "
                    f"{self.settings.get(name)}. Give another folder, or delete this one."
                )
            known = record.get("files", {})
            for name, digest in digests.items():
                if known.get(name) != digest:
                    verb = "had" if name in known else "may have had"
                    raise RunFolderError(
                        f"{self.folder} holds a run for which {name} = {files[name]} {verb} other "
                        "contents: its results would be stale. Give another folder, or delete this "
                        "one."
                    )
        else:
            self.write_json(
                "run.json",
                {
                    "settings": self.settings,
                    **({"files": digests} if digests else {}),
                    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "versions": versions(),
                },
            )

    @property
    def record(self) -> dict[str, Any]:
        """Settings, start and versions, as `run.json` holds them."""
        return self.read_json("run.json")

    def path(self, name: str) -> Path:
        """A path in the folder; its parent exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data atomically; NumPy numbers and arrays become numbers and lists."""
        text = json.dumps(value, indent=2, default=_plain) + "\n"
        self._write(name, lambda path: path.write_text(text))

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote.

        Raises:
            RunFolderError: the record is damaged or missing.
        """
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"the record {path} cannot be read ({error}). Delete it to compute it again."
            ) from error

    def json_step(self, name: str, compute: Callable[[], Any]) -> Any:
        """The plain data that `compute` returns; a resumed run reads it from the file `name`."""
        if not self.has(name):
            self.write_json(name, compute())
        return self.read_json(name)

    def frame_step(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table that `compute` returns; a resumed run reads it from the Parquet file `name`.

        Raises:
            RunFolderError: the file is damaged.
            OSError: it could not be written.
        """

        def write(frame: pd.DataFrame, path: Path) -> None:
            frame.to_parquet(path, index=False)

        return self._step(name, compute, write, pd.read_parquet)

    def arrays_step(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The named arrays that `compute` returns; a resumed run reads them from `name` (.npz).

        Raises:
            RunFolderError: the file is damaged.
            OSError: it could not be written.
        """

        def write(arrays: dict[str, np.ndarray], path: Path) -> None:
            np.savez_compressed(path, **arrays)

        def read(path: Path) -> dict[str, np.ndarray]:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}

        return self._step(name, compute, write, read)

    def _step(
        self,
        name: str,
        compute: Callable[[], Any],
        write: Callable[[Any, Path], None],
        read: Callable[[Path], Any],
    ) -> Any:
        """Compute and write what is not there yet; read it in any case."""
        if not self.has(name):
            result = compute()
            self._write(name, lambda temporary: write(result, temporary))
        try:
            return read(self.path(name))
        except Exception as error:  # pyarrow, zipfile, zlib and NumPy raise many kinds
            raise RunFolderError(
                f"{self.path(name)} cannot be read ({error}). Delete it to compute it again."
            ) from error

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        """The chief writes `name` atomically; the other workers wait for it."""
        if is_chief():
            with atomic_path(self.path(name)) as temporary:
                write(temporary)
        broadcast_from_chief(0)

    def has(self, name: str) -> bool:
        """Whether a step is finished, according to the chief; all workers must call this."""
        return bool(broadcast_from_chief((self.folder / name).exists()))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path that becomes `name` when the block ends without an error."""
        with atomic_path(self.path(name)) as temporary:
            yield temporary


def _defaults(settings: Any) -> dict[str, Any]:
    fields = dataclasses.fields(settings)
    values = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(values))


def _sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise InputTypeError(f"{type(value).__name__} cannot be written as JSON")
