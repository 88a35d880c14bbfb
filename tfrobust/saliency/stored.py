"""Target maps of a training set: computed once, in a memory-mapped file with its provenance."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfrobust.arguments import as_count
from tfrobust.classifier import Classifier, as_images, as_labels
from tfrobust.distribution import broadcast_from_chief, is_chief
from tfrobust.errors import InputError, MissingFileError, StorageError, TfrobustError
from tfrobust.files import atomic_path, writable_folder
from tfrobust.saliency.digests import architecture_sha256, values_sha256, weights_sha256
from tfrobust.saliency.explained import as_explained
from tfrobust.saliency.maps import gradient
from tfrobust.saliency.smoothed import Smoothing, smoothed_maps

__all__ = ["TargetMaps", "TargetMapsError", "target_maps"]

Method = Literal["smoothgrad", "gradient"]

_MAPS = "maps.npy"
_RECORD = "maps.json"
# options of the methods and their defaults
_OPTIONS = {"smoothgrad": dataclasses.asdict(Smoothing()), "gradient": {"of": Smoothing().of}}


class TargetMapsError(TfrobustError, RuntimeError):
    """Stored target maps are damaged or not finished; the message says what to do."""


class TargetMaps:
    """Finished target maps in a folder; from `target_maps`, or `TargetMaps.open(folder)`."""

    def __init__(self, folder: Path, record: _Record, maps: np.ndarray):
        self.folder = folder
        self._record = record
        self._maps = maps

    @classmethod
    def open(cls, folder: str | Path) -> TargetMaps:
        """The finished maps in a folder; all their values are read once and compared by digest.

        Raises:
            FileNotFoundError: the folder holds no target maps.
            TargetMapsError: a RuntimeError: they are damaged or not finished.
        """
        folder = Path(folder)
        if not (folder / _RECORD).exists():
            raise MissingFileError(f"{folder} holds no target maps: compute them by target_maps")
        record = _Record.read(folder)
        if record.finished < record.count:
            raise TargetMapsError(
                f"{folder} holds {record.finished} of {record.count} target maps: call target_maps "
                "with the same arguments to compute the others"
            )
        return cls(folder, record, _mapped(folder, record))

    @property
    def provenance(self) -> dict[str, Any]:
        """Method, options, seed, shape, digests of model and data, and versions; plain data."""
        return copy.deepcopy(self._record.provenance)

    def checked(self, x: Any, labels: Any) -> np.ndarray:
        """The maps, once it is certain that they are those of these images and labels.

        Args:
            x: (count, *input), the images that the maps were computed for, in the same order.
            labels: (count,).

        Returns:
            (count, *input) float32, memory-mapped and read-only.

        Raises:
            InputError: a ValueError: other images, other labels, or another order.
        """
        known = self._record.provenance
        x = np.asarray(x)
        if list(x.shape) != known["shape"] or x.dtype.kind not in "fiub":
            raise InputError(
                f"the target maps in {self.folder} are of images {tuple(known['shape'])}, got "
                f"{x.dtype} {x.shape}"
            )
        labels = as_labels(labels, len(x), known["classes"])
        for name, found in (
            ("images", values_sha256(x, "<f4")),
            ("labels", values_sha256(labels, "<i4")),
        ):
            if found != known[f"{name}_sha256"]:
                raise InputError(
                    f"the target maps in {self.folder} are of other {name}: give those that they "
                    "were computed for, in the same order and before augmentation"
                )
        return self._maps

    def __repr__(self) -> str:
        return f"TargetMaps({str(self.folder)!r}, {self._record.count} maps)"


def target_maps(
    folder: str | Path,
    model: keras.Model,
    x: Any,
    labels: Any,
    *,
    method: Method = "smoothgrad",
    seed: int = 0,
    batch_size: int = 100,
    chunk: int = 1000,
    **options: Any,
) -> TargetMaps:
    """Saliency maps of the true labels' logits for a training set, computed once and stored.

    The maps are computed chunk by chunk into `maps.npy`, beside `maps.json` with their provenance
    and a digest of every finished chunk. A call for a folder with unfinished maps goes on after the
    last finished chunk; with the same batch size, the results are those of a call that was not
    interrupted. For finished maps it computes nothing. With several workers, all make the same call
    and read the folder.

    Source: Noack et al. 2020, section 3.1.

    Args:
        folder: of one set of maps; created where it does not exist.
        model: any classifier.
        x: (count, *input), the training images without augmentation.
        labels: (count,), the true labels.
        method: "smoothgrad" or "gradient".
        seed: of the noise of SmoothGrad, which depends on an example's place in x, not on chunks.
        batch_size: examples per call.
        chunk: rows after which the results are written, rounded up to whole batches; bounds the
            memory and what is lost when the process is killed.
        options: of the method: `sigma`, `samples`, `clip`, `include_clean`, `of` for `smoothgrad`;
            `of` for `gradient`.

    Raises:
        InputError: a ValueError: malformed data, an unknown method or option, maps that are NaN or
            infinite, or the folder holds maps of another model, other data, or another method,
            option or seed; names what differs.
        TargetMapsError: a RuntimeError: the stored maps are damaged.
        StorageError: an OSError: the folder cannot be written to, or the disk is full; finished
            rows are kept.
        NotLogitsError: the model has no logits to give.
    """
    x = as_images(model, x)
    classes = Classifier.of(model, x).classes
    labels = as_labels(labels, len(x), classes)
    batch_size, chunk = as_count("batch_size", batch_size, 1), as_count("chunk", chunk, 1)
    options = _as_options(method, options)
    as_explained(model, x[:1], labels[:1], options["of"], batch_size)  # refuses an unknown `of`
    seed = as_count("seed", seed, 0) if method == "smoothgrad" else None
    provenance = {
        "method": method,
        "options": json.loads(json.dumps(options)),
        "seed": seed,
        "shape": list(x.shape),
        "classes": classes,
        "architecture_sha256": architecture_sha256(model),
        "weights_sha256": weights_sha256(model),
        "images_sha256": values_sha256(x, "<f4"),
        "labels_sha256": values_sha256(labels, "<i4"),
        "versions": {name: _version(name) for name in ("tfrobust", "tensorflow", "keras")},
    }

    def compute(start: int, stop: int) -> np.ndarray:
        rows, of_rows = x[start:stop], labels[start:stop]
        if method == "gradient":
            return gradient(model, rows, of_rows, **options, batch_size=batch_size)
        return smoothed_maps(
            model,
            rows,
            of_rows,
            Smoothing(**options),
            seed=seed,
            batch_size=batch_size,
            first_row=start,
            description=f"target maps {start} to {stop} of {len(x)}",
        )

    # whole batches, so that examples share their batch with the same others whatever the chunk
    chunk = -(-chunk // batch_size) * batch_size
    folder = writable_folder(folder) if is_chief() else Path(folder)
    _fill(folder, _resumed(folder, provenance), compute, chunk)
    return TargetMaps.open(folder)


@dataclasses.dataclass
class _Record:
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
    def read(cls, folder: Path) -> _Record:
        try:
            read = json.loads((folder / _RECORD).read_text())
            record = cls(read["provenance"], [(int(end), str(sha)) for end, sha in read["chunks"]])
            int(record.provenance["classes"])
            ends = [0, *(end for end, _ in record.chunks)]
            if ends != sorted(set(ends)) or not ends[-1] == read["finished_rows"] <= record.count:
                raise _damaged(folder, _RECORD, "its numbers of rows contradict each other")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise _damaged(folder, _RECORD, f"{type(error).__name__}: {error}") from error
        return record

    def write(self, folder: Path) -> None:
        content = dataclasses.asdict(self) | {"finished_rows": self.finished}
        with atomic_path(folder / _RECORD) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def _resumed(folder: Path, provenance: dict[str, Any]) -> _Record:
    """The folder's record, or a new one where it holds no finished rows.

    Raises:
        InputError: the folder holds maps of something else.
    """
    if not (folder / _RECORD).exists():
        if (folder / _MAPS).exists():
            raise InputError(
                f"{folder} holds a {_MAPS} without {_RECORD}, of unknown origin. Give another "
                "folder, or delete the file."
            )
        return _Record(provenance)
    record = _Record.read(folder)
    if not record.finished:
        return _Record(provenance)
    remedy = "Give another folder, or delete this one."
    for name, now in provenance.items():
        then = record.provenance.get(name)
        if now == then or (name == "versions" and record.finished == record.count):
            continue
        if name.endswith("_sha256"):
            what = name.removesuffix("_sha256")
            owner = " of the model" if what in ("architecture", "weights") else ""
            raise InputError(f"{folder} holds target maps of other {what}{owner}. {remedy}")
        if isinstance(now, dict) and isinstance(then, dict):  # of options and versions, the first
            name = next(key for key in {**now, **then} if now.get(key) != then.get(key))
            now, then = now.get(name), then.get(name)
        raise InputError(f"{folder} holds target maps with {name} = {then}, now {now}. {remedy}")
    return record


def _fill(
    folder: Path, record: _Record, compute: Callable[[int, int], np.ndarray], chunk: int
) -> None:
    """Compute and write the rows that are missing; with several workers the chief writes."""
    # all workers have read the record before the chief changes it
    finished = int(broadcast_from_chief(record.finished))
    if is_chief() and finished < record.count:
        if not finished:
            record.write(folder)
            _allocate(folder / _MAPS, record.provenance["shape"])
        _mapped(folder, record)
        maps = np.lib.format.open_memmap(folder / _MAPS, "r+")
    for start in range(finished, record.count, chunk):
        stop = min(start + chunk, record.count)
        rows = compute(start, stop)
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise InputError(
                f"the model's maps hold NaN or infinite values, first in example "
                f"{start + int(np.argmin(finite))}; nothing of rows {start} to {stop} was stored"
            )
        if is_chief():
            try:
                maps[start:stop] = rows
                maps.flush()
            except OSError as error:
                raise StorageError(
                    f"could not write {folder / _MAPS}: {error.strerror or error}. The {start} "
                    "finished maps are kept: make space, and call target_maps again."
                ) from error
            record.chunks.append((stop, values_sha256(rows, "<f4")))
            record.write(folder)
    broadcast_from_chief(0.0)  # others read the file after the chief has finished it


def _allocate(path: Path, shape: list[int]) -> None:
    """An empty file of maps that has its space on the disk."""
    with atomic_path(path) as temporary:
        np.lib.format.open_memmap(temporary, "w+", np.dtype("<f4"), tuple(shape))
        # writing to a mapping for which there is no space would end the process
        if hasattr(os, "posix_fallocate"):
            with temporary.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)


def _mapped(folder: Path, record: _Record) -> np.ndarray:
    """The file of maps, memory-mapped, after its finished rows have been compared by digest."""
    try:
        # read-only: NumPy makes a file that is too short longer when it may write
        maps = np.lib.format.open_memmap(folder / _MAPS, "r")
    except (OSError, ValueError) as error:
        raise _damaged(folder, _MAPS, str(error)) from error
    if list(maps.shape) != record.provenance["shape"] or maps.dtype != np.dtype("<f4"):
        raise _damaged(folder, _MAPS, f"it holds {maps.dtype} {maps.shape}")
    start = 0
    for stop, sha in record.chunks:
        if values_sha256(maps[start:stop], "<f4") != sha:
            raise _damaged(folder, _MAPS, f"maps {start} to {stop} have changed")
        start = stop
    return maps


def _damaged(folder: Path, name: str, reason: str) -> TargetMapsError:
    return TargetMapsError(
        f"{folder / name} is damaged ({reason}). Delete {_MAPS} and {_RECORD} in this folder to "
        "compute the maps again."
    )


def _as_options(method: Any, options: dict[str, Any]) -> dict[str, Any]:
    """All options of the method, validated."""
    if method not in _OPTIONS:
        raise InputError(f'method must be "smoothgrad" or "gradient", got {method!r}')
    unknown = sorted(options.keys() - _OPTIONS[method].keys())
    if unknown:
        known = ", ".join(_OPTIONS[method])
        raise InputError(f"{method} has no option {unknown[0]!r}; its options are {known}")
    options = _OPTIONS[method] | options
    return dataclasses.asdict(Smoothing(**options)) if method == "smoothgrad" else options


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
