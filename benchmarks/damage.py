"""Damaged files and hostile models, by seed: what a reader makes of them."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import reference_models
from benchmarks.campaign import Tally
from tfrobust import data
from tfrobust.errors import TfrobustError
from tfrobust.report import Results, Run

__all__ = ["damaged_files", "hostile_models"]

# without checksums in the format: damage is counted, not a violation
UNCHECKED = ("jpeg",)


@dataclasses.dataclass(frozen=True)
class _RunSettings:
    seed: int = 0


def damaged_files(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """One damaged file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for kind, (name, read) in _formats(folder).items():
        before = read()
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(_damaged(whole, rng))
        tally.counts[kind]["files"] += 1
        try:
            after = read()
        except Exception as error:  # whatever a library raises would be a traceback for the user
            if isinstance(error, TfrobustError):
                named = path.name in str(error)
                tally.counts[kind]["refused" if named else "refused without its name"] += 1
            else:
                tally.counts[kind]["raw error"] += 1
                tally.violated(f"damaged_files-{seed}: {kind}: {type(error).__name__}: {error}")
        else:
            same = _equal(before, after)
            tally.counts[kind]["read as it was" if same else "taken silently"] += 1
            if not same and kind not in UNCHECKED:
                (folder / f"damaged-{path.name}").write_bytes(path.read_bytes())
                tally.violated(f"damaged_files-{seed}: {kind} taken silently")
        path.write_bytes(whole)


def _damaged(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    kind, place = rng.integers(4), int(rng.integers(len(content)))
    if kind == 0:
        return bytes(damaged[:place])
    if kind == 1:
        length = int(rng.integers(1, 65))
        damaged[place : place + length] = bytes(len(damaged[place : place + length]))
        return bytes(damaged)
    damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def _formats(folder: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Every kind of file: its name, and a function that reads what is in it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(40), keras.layers.Dense(3)])
    reference_models.save(model, folder / "model.keras")
    reference_models.save_weights(model, folder / "model.weights.h5")
    rng = np.random.default_rng(0)
    with_results = Run(folder / "run", _RunSettings())
    frame = pd.DataFrame({"a": rng.normal(size=200), "b": [f"row {k}" for k in range(200)]})
    with_results.frame_step("table.parquet", lambda: frame)
    with_results.arrays_step("arrays.npz", lambda: {"x": rng.normal(size=300)})
    with_results.json_step("result.json", lambda: {"accuracy": 0.5, "parts": [1, 2, 3]})
    with_results.close()
    picture = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    image = folder / "image.jpeg"
    image.write_bytes(tf.io.encode_jpeg(picture).numpy())

    def results() -> Results:
        return Results.open(folder / "run")

    def weights() -> list[np.ndarray]:
        fresh = keras.models.clone_model(model)
        reference_models.load_weights(fresh, folder / "model.weights.h5")
        return fresh.get_weights()

    def whole_model() -> list[np.ndarray]:
        return reference_models.load(folder / "model.keras").get_weights()

    return {
        "keras": ("model.keras", whole_model),
        "weights": ("model.weights.h5", weights),
        "run.json": ("run/run.json", lambda: results().record["settings"]),
        "parquet": ("run/table.parquet", lambda: results().read_frame("table.parquet").to_numpy()),
        "npz": ("run/arrays.npz", lambda: results().read_arrays("arrays.npz")["x"]),
        "json": ("run/result.json", lambda: results().read_json("result.json")),
        "jpeg": ("image.jpeg", lambda: data.read_images([image], size=(40, 40), max_corrupt=0)[0]),
    }


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, list) and before and isinstance(before[0], np.ndarray):
        return len(before) == len(after) and all(map(np.array_equal, before, after))
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and bool((before == after).all())
    return before == after


def hostile_models(seed: int, folder: Path, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """Model and weight files made to run code, to read other files or to fill the memory."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    for kind, write in _HOSTILE.items():
        mark = folder / f"{kind}-was-here"
        path = write(folder, model, mark, rng)
        tally.counts["hostile models"]["files"] += 1
        try:
            if path.name.endswith(".weights.h5"):
                reference_models.load_weights(model, path)
            elif path.suffix == ".npz":
                Results(folder, None).read_arrays(path.name)
            else:
                reference_models.load(path)
        except Exception as error:  # whatever a library raises would be a traceback for the user
            if isinstance(error, TfrobustError):
                tally.counts["hostile models"]["refused"] += 1
            else:
                tally.violated(f"hostile_models-{seed}: {kind}: {type(error).__name__}: {error}")
        else:
            tally.violated(f"hostile_models-{seed}: {kind} taken silently")
        if mark.exists():
            tally.violated(f"hostile_models-{seed}: {kind} ran code")
        path.unlink()


def _code_in_a_lambda(folder: Path, model: Any, mark: Path, rng: np.random.Generator) -> Path:
    path, place = folder / "lambda.keras", str(mark)

    def spoil(x: Any) -> Any:
        Path(place).touch()
        return x

    layers = list(model.layers)
    layers.insert(int(rng.integers(len(layers) + 1)), keras.layers.Lambda(spoil))
    keras.Sequential([keras.Input((6,)), *layers]).save(path)
    mark.unlink(missing_ok=True)  # the function has run when the model was built
    return path


def _code_by_name(folder: Path, model: Any, mark: Path, rng: np.random.Generator) -> Path:
    """A configuration that names a function of Python's own as a layer."""
    path = folder / "named.keras"
    model.save(folder / "whole.keras")
    module, name, arguments = (
        ("os", "system", {"command": f"touch {mark}"}),
        ("builtins", "exec", {"source": f"open({str(mark)!r}, 'w')"}),
        ("subprocess", "Popen", {"args": ["touch", str(mark)]}),
        ("pathlib", "Path", {"args": str(mark)}),
    )[rng.integers(4)]

    def spoil(content: bytes) -> bytes:
        config = json.loads(content)
        layers = config["config"]["layers"]
        layers[int(rng.integers(1, len(layers)))] = {
            "module": module,
            "class_name": name,
            "config": arguments,
            "registered_name": rng.choice([name, None, f"{module}>{name}"]),
        }
        return json.dumps(config).encode()

    _rewritten(folder / "whole.keras", path, "config.json", spoil)
    return path


def _rewritten(whole: Path, path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for each in source.namelist():
            content = source.read(each)
            target.writestr(each, change(content) if each == name else content)


def _other_file(folder: Path, model: Any, mark: Path, rng: np.random.Generator) -> Path:
    """Weights that lie in another file, or whose shape would fill the memory."""
    path, secret = folder / "elsewhere.weights.h5", folder / "secret.h5"
    model.save_weights(path)
    with h5py.File(secret, "w") as other:
        other["x"] = np.zeros((6, 4), np.float32)
    with h5py.File(path, "r+") as file:
        place = file["layers/dense/vars"]
        del place["0"]
        kind = rng.integers(4)
        if kind == 0:
            place["0"] = h5py.ExternalLink(secret, "x")
        elif kind == 1:
            external = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            place.create_dataset("0", (6, 4), "f4", external=external)
        elif kind == 2:
            layout = h5py.VirtualLayout((6, 4), "f4")
            layout[:] = h5py.VirtualSource(secret, "x", (6, 4))
            place.create_virtual_dataset("0", layout)
        else:
            size = 2 ** int(rng.integers(16, 20))
            place.create_dataset("0", (size, size), "f4", chunks=(1024, 1024), compression="gzip")
    return path


def _archive_bomb(folder: Path, model: Any, mark: Path, rng: np.random.Generator) -> Path:
    """Kilobytes that would become hundreds of megabytes."""
    path = folder / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            with archive.open(name, "w") as file:
                for _ in range(int(rng.integers(80, 200))):
                    file.write(bytes(2**20))
    return path


class _Pickled:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def _pickled_array(folder: Path, model: Any, mark: Path, rng: np.random.Generator) -> Path:
    path = folder / "pickled.npz"
    np.savez(path, x=np.array([_Pickled(mark)] * int(rng.integers(1, 4)), dtype=object))
    return path


_HOSTILE = {
    "lambda": _code_in_a_lambda,
    "name": _code_by_name,
    "other-file": _other_file,
    "bomb": _archive_bomb,
    "pickle": _pickled_array,
}
