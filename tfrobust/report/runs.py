"""Run folders: settings, versions and seeds, and steps that are either finished or not begun."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tfrobust.distribution import chief_says, is_chief
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
    """Versions of Python, the packages and the machine that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["machine"] = f"{platform.system()} {platform.machine()}, {_processor()}, {cores} cores"
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


class Run:
    """A folder of one experiment's results.

    Where several hosts work together all make the same calls, the first one writes, and all see
    the folder.

    Args:
        folder: made if need be. One that holds a run with the same settings is gone on with.
        settings: a frozen dataclass.
        files: that the results depend on, by the names of their settings; held by their contents.

    Raises:
        OSError: the folder is not writable, or one of the files cannot be read.
        RunFolderError: the folder holds a run with other settings, or of other contents.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Any,
        files: Mapping[str, str | Path] = MappingProxyType({}),
    ):
        digests = {name: _sha256(path) for name, path in files.items()}
        self.folder = writable_folder(folder) if is_chief() else Path(folder)
        self.settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        if self.has("run.json"):
            record = self.read_json("run.json")
            # a setting that came later had its default before
            before = _defaults(settings) | record["settings"]
            names = sorted(before.keys() | self.settings.keys())
            changed = [name for name in names if before.get(name) != self.settings.get(name)]
            if changed:
                name = changed[0]
                raise RunFolderError(
                    f"{self.folder} holds a run with {name} = {before.get(name)}, now "
                    f"{self.settings.get(name)}. Give another folder, or delete this one."
                )
            held = record.get("files", {})
            for name, digest in digests.items():
                if held.get(name) != digest:
                    known = "had other contents" if name in held else "may have had other contents"
                    raise RunFolderError(
                        f"{self.folder} holds a run for which {name} = {files[name]} {known}: its "
                        "results would be stale. Give another folder, or delete this one."
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
        """Write plain data atomically; NumPy numbers and arrays become plain."""
        text = json.dumps(value, indent=2, default=_plain) + "\n"
        self._write(name, lambda path: path.write_text(text))

    def read_json(self, name: str) -> Any:
        """Raises: RunFolderError where the record is damaged or missing."""
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"the record {path} cannot be read ({error}). Delete it to make it again."
            ) from error

    def json_step(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()`'s plain data, made once: a later run reads it from `name`."""
        if not self.has(name):
            self.write_json(name, make())
        return self.read_json(name)

    def frame_step(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """`make()`'s table, made once: a later run reads it from the Parquet file `name`.

        Raises:
            RunFolderError: the file is damaged.
            OSError: it could not be written.
        """
        path = self.path(name)
        if not self.has(name):
            frame = make()
            self._write(name, lambda temporary: frame.to_parquet(temporary, index=False))
        try:
            return pd.read_parquet(path)
        except Exception as error:  # pyarrow raises many kinds
            raise RunFolderError(
                f"the table {path} cannot be read ({error}). Delete it to make it again."
            ) from error

    def arrays_step(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> Any:
        """`make()`'s arrays by name, made once: a later run reads them from the file `name` (.npz).

        Raises:
            RunFolderError: the file is damaged.
            OSError: it could not be written.
        """
        path = self.path(name)
        if not self.has(name):
            arrays = make()
            self._write(name, lambda temporary: np.savez_compressed(temporary, **arrays))
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RunFolderError(
                f"the arrays {path} cannot be read ({error}). Delete the file to make it again."
            ) from error

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let the first host write `name`, whole or not at all; the others wait until it has."""
        if is_chief():
            with atomic_path(self.path(name)) as temporary:
                write(temporary)
        chief_says(0)

    def has(self, name: str) -> bool:
        """Whether a step is finished; hosts take the first one's word, which also holds them."""
        return bool(chief_says((self.folder / name).exists()))

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
    raise InputTypeError(f"{type(value).__name__} is no plain data")
