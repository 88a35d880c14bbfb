"""Target maps of a training set: computed once, in a memory-mapped file with its provenance."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tfrobust.arguments import as_count
from tfrobust.classifier import Classifier, as_images, as_labels
from tfrobust.distribution import broadcast_from_chief, is_chief
from tfrobust.errors import InputError, MissingFileError, StorageError
from tfrobust.locks import FolderLock
from tfrobust.saliency.digests import architecture_sha256, values_sha256, weights_sha256
from tfrobust.saliency.explained import as_explained
from tfrobust.saliency.map_files import MAPS, RECORD, Record, TargetMapsError, allocate, mapped
from tfrobust.saliency.maps import gradient
from tfrobust.saliency.smoothed import Smoothing, smoothed_maps

__all__ = ["TargetMaps", "TargetMapsError", "target_maps"]

Method = Literal["smoothgrad", "gradient"]

# options of the methods and their defaults
_OPTIONS = {"smoothgrad": dataclasses.asdict(Smoothing()), "gradient": {"of": Smoothing().of}}


class TargetMaps:
    """Finished target maps in a folder; from `target_maps`, or `TargetMaps.open(folder)`."""

    def __init__(self, folder: Path, record: Record, maps: np.ndarray):
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
        if not (folder / RECORD).exists():
            raise MissingFileError(f"{folder} holds no target maps: compute them by target_maps")
        record = Record.read(folder)
        if record.finished < record.count:
            raise TargetMapsError(
                f"{folder} holds {record.finished} of {record.count} target maps: call target_maps "
                "with the same arguments to compute the others"
            )
        return cls(folder, record, mapped(folder, record))

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
        FolderInUseError: another process, or another call in this one, fills the folder.
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
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(FolderLock.for_one_call(folder)) if is_chief() else None
        _fill(folder, _resumed(folder, provenance), compute, chunk, lock)
    return TargetMaps.open(folder)


def _resumed(folder: Path, provenance: dict[str, Any]) -> Record:
    """The folder's record, or a new one where it holds no finished rows.

    Raises:
        InputError: the folder holds maps of something else.
    """
    if not (folder / RECORD).exists():
        if (folder / MAPS).exists():
            raise InputError(
                f"{folder} holds a {MAPS} without {RECORD}, of unknown origin. Give another "
                "folder, or delete the file."
            )
        return Record(provenance)
    record = Record.read(folder)
    if not record.finished:
        return Record(provenance)
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
    folder: Path,
    record: Record,
    compute: Callable[[int, int], np.ndarray],
    chunk: int,
    lock: FolderLock | None,
) -> None:
    """Compute and write the rows that are missing; with several workers the chief writes."""
    # all workers have read the record before the chief changes it
    finished = int(broadcast_from_chief(record.finished))
    if lock is not None and finished < record.count:
        if not finished:
            record.write(folder)
            allocate(folder / MAPS, record.provenance["shape"])
        mapped(folder, record)
        maps = np.lib.format.open_memmap(folder / MAPS, "r+")
    for start in range(finished, record.count, chunk):
        stop = min(start + chunk, record.count)
        rows = compute(start, stop)
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise InputError(
                f"the model's maps hold NaN or infinite values, first in example "
                f"{start + int(np.argmin(finite))}; nothing of rows {start} to {stop} was stored"
            )
        if lock is not None:
            lock.check()
            try:
                maps[start:stop] = rows
                maps.flush()
            except OSError as error:
                raise StorageError(
                    f"could not write {folder / MAPS}: {error.strerror or error}. The {start} "
                    "finished maps are kept: make space, and call target_maps again."
                ) from error
            record.chunks.append((stop, values_sha256(rows, "<f4")))
            record.write(folder)
    broadcast_from_chief(0.0)  # others read the file after the chief has finished it


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
