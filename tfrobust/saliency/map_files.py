"""The two files of target maps: the memory-mapped maps, and the record of what they are."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.errors import TfrobustError
from tfrobust.files import atomic_path
from tfrobust.saliency.digests import values_sha256

__all__ = ["MAPS", "RECORD", "Record", "TargetMapsError", "allocate", "mapped"]

MAPS = "maps.npy"
RECORD = "maps.json"


class TargetMapsError(TfrobustError, RuntimeError):
    """Stored target maps are damaged or not finished; the message says what to do."""


@dataclasses.dataclass
class Record:
    """What `maps.json` holds: the provenance, and (end, sha256) of every finished chunk of rows."""

    provenance: dict[str, Any]
    chunks: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        return self.provenance["shape"][0]

    @property
    def finished(self) -> int:
        return self.chunks[-1][0] if self.chunks else 0

    @classmethod
    def read(cls, folder: Path) -> Record:
        try:
            read = json.loads((folder / RECORD).read_text())
            record = cls(read["provenance"], [(int(end), str(sha)) for end, sha in read["chunks"]])
            int(record.provenance["classes"])
            ends = [0, *(end for end, _ in record.chunks)]
            if ends != sorted(set(ends)) or not ends[-1] == read["finished_rows"] <= record.count:
                raise _damaged(folder, RECORD, "its numbers of rows contradict each other")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise _damaged(folder, RECORD, f"{type(error).__name__}: {error}") from error
        return record

    def write(self, folder: Path) -> None:
        content = dataclasses.asdict(self) | {"finished_rows": self.finished}
        with atomic_path(folder / RECORD) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def allocate(path: Path, shape: list[int]) -> None:
    """An empty file of maps that has its space on the disk."""
    with atomic_path(path) as temporary:
        np.lib.format.open_memmap(temporary, "w+", np.dtype("<f4"), tuple(shape))
        # writing to a mapping for which there is no space would end the process
        if hasattr(os, "posix_fallocate"):
            with temporary.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)


def mapped(folder: Path, record: Record) -> np.ndarray:
    """The file of maps, memory-mapped, after its finished rows have been compared by digest."""
    try:
        # read-only: NumPy makes a file that is too short longer when it may write
        maps = np.lib.format.open_memmap(folder / MAPS, "r")
    except (OSError, ValueError) as error:
        raise _damaged(folder, MAPS, str(error)) from error
    if list(maps.shape) != record.provenance["shape"] or maps.dtype != np.dtype("<f4"):
        raise _damaged(folder, MAPS, f"it holds {maps.dtype} {maps.shape}")
    start = 0
    for stop, sha in record.chunks:
        if values_sha256(maps[start:stop], "<f4") != sha:
            raise _damaged(folder, MAPS, f"maps {start} to {stop} have changed")
        start = stop
    return maps


def _damaged(folder: Path, name: str, reason: str) -> TargetMapsError:
    return TargetMapsError(
        f"{folder / name} is damaged ({reason}). Delete {MAPS} and {RECORD} in this folder to "
        "compute the maps again."
    )
