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
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tfrobust.distribution import broadcast_from_chief, is_chief
from tfrobust.files import atomic_path
from tfrobust.locks import FolderLock, FolderLostError
from tfrobust.report.results import (
    RECORD,
    Results,
    RunFolderError,
    seal_of,
    write_arrays,
    write_frame,
    write_json,
)

__all__ = ["Run", "versions"]

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


class Run(Results):
    """A folder of one experiment's results.

    One process works in it at a time; with several workers, all make the same calls, the chief
    writes, and all read the folder. Every result carries the settings that made it: one of other
    settings, or of unknown ones, is refused when it is read.

    Args:
        folder: created where it does not exist; a run in it with the same settings is resumed.
        settings: a frozen dataclass.
        files: files on which results depend, by the name of their setting; compared by content.

    Raises:
        OSError: the folder is not writable, or one of the files cannot be read.
        FolderInUseError: another process works in the folder.
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
        super().__init__(Path(folder), None)
        self._lock: FolderLock | None = None
        if is_chief():
            self._lock = FolderLock.of(folder, cohort=True)
        release = self._lock.release if self._lock else int
        self._release = weakref.finalize(self, release)
        self.settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        if self.has(RECORD):
            record = self.record
            self._check_settings(record["settings"], settings)
            self._check_files(record.get("files", {}), digests, files)
            self.seal = record.get("results")
        else:
            record = {"settings": self.settings, **({"files": digests} if digests else {})}
            self.seal = seal_of(record)
            record |= {
                "results": self.seal,
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": versions(),
            }
            text = json.dumps(record, indent=2) + "\n"
            self._write(RECORD, lambda path: path.write_text(text))

    def _check_settings(self, recorded: dict[str, Any], settings: Any) -> None:
        # settings introduced after the record was written had their default values
        recorded = _defaults(settings) | recorded
        names = sorted(recorded.keys() | self.settings.keys())
        changed = [name for name in names if recorded.get(name) != self.settings.get(name)]
        if changed:
            name = changed[0]
            raise RunFolderError(
                f"{self.folder} holds a run with {name} = {recorded.get(name)}, now "
                f"{self.settings.get(name)}. Give another folder, or delete this one."
            )

    def _check_files(
        self, known: dict[str, str], digests: dict[str, str], files: Mapping[str, str | Path]
    ) -> None:
        for name, digest in digests.items():
            if known.get(name) != digest:
                verb = "had" if name in known else "may have had"
                raise RunFolderError(
                    f"{self.folder} holds a run for which {name} = {files[name]} {verb} other "
                    "contents: its results would be stale. Give another folder, or delete this one."
                )

    def close(self) -> None:
        """Let other processes into the folder; nothing can be written to it any more."""
        self._release()

    def share(self) -> None:
        """Let the members of a cohort on other processes write to the folder.

        Raises:
            FolderInUseError: another process was faster.
        """
        if self._lock is not None:
            self._lock.share()

    def path(self, name: str) -> Path:
        """A path in the folder, to be written; its parent exists.

        Raises:
            FolderLostError: the folder was deleted since the run began; it is not made again.
        """
        if self._lock is not None:
            self._lock.check()
            if name != RECORD and not self.exists(RECORD):
                raise FolderLostError(
                    f"{self.folder / RECORD} was deleted during the run: nothing more is written "
                    "there. Start again."
                )
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data atomically; NumPy numbers and arrays become numbers and lists."""
        self._write(name, lambda path: write_json(path, value, self.seal))

    def json_step(self, name: str, compute: Callable[[], Any]) -> Any:
        """The plain data that `compute` returns; a resumed run reads it from the file `name`."""
        if not self.has(name):
            self.write_json(name, compute())
        return self.read_json(name)

    def frame_step(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table that `compute` returns; a resumed run reads it from the Parquet file `name`.

        Raises:
            RunFolderError: the file is damaged, or of other settings.
            OSError: it could not be written.
        """
        if not self.has(name):
            frame = compute()
            self._write(name, lambda path: write_frame(path, frame, self.seal))
        return self.read_frame(name)

    def arrays_step(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The named arrays that `compute` returns; a resumed run reads them from `name` (.npz).

        Raises:
            RunFolderError: the file is damaged, or of other settings.
            OSError: it could not be written.
        """
        if not self.has(name):
            arrays = compute()
            self._write(name, lambda path: write_arrays(path, arrays, self.seal))
        return self.read_arrays(name)

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        """The chief writes `name` atomically; the other workers wait for it."""
        if is_chief():
            with atomic_path(self.path(name)) as temporary:
                write(temporary)
        broadcast_from_chief(0)

    def has(self, name: str) -> bool:
        """Whether a step is finished, according to the chief; all workers must call this."""
        return bool(broadcast_from_chief(self.exists(name)))

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
