"""Weight files: Keras 3's `.weights.h5` and `.keras`, and the legacy `.h5` of Keras Applications.

Only arrays are read: neither configuration nor code in a file is used. All shapes are compared
before the first value is read, and all values are read before the first is assigned.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from reference_models.hdf5 import check_hdf5, content_sha256
from reference_models.storage import ModelFileError
from tfrobust.classifier import all_layers
from tfrobust.errors import InputError
from tfrobust.files import atomic_path, check_archive
from tfrobust.layers import FrozenBatchNormalization

__all__ = ["finalize", "load_weights", "save_weights", "weight_file"]

_FORMATS = "Keras 3's .weights.h5 and .keras, and the legacy .h5 of Keras Applications"
# attribute of a file that `save_weights` wrote
_DIGEST = "tfrobust_sha256"
# (class, index among the layers of that class), one entry per level of nested models
_Key = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The weights of one layer: variables of a model, or HDF5 data sets of a file."""

    layer: str
    arrays: list[Any]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(array.shape) for array in self.arrays]


_Pair = tuple[_Weights | None, _Weights | None]


def weight_file(path: str | Path) -> Path:
    """`path`, if its first bytes are those of a supported format.

    Raises:
        ModelFileError: the file does not exist, or has another format.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(
            f"there is no weight file {path}; weights is None, 'imagenet' or a file: {_FORMATS}"
        )
    if _first_bytes(path) not in (b"PK\3\4", b"\x89HDF"):
        raise ModelFileError(
            f"{path} is not a weight file, or is damaged: neither HDF5 nor a Keras archive. "
            f"Supported are {_FORMATS}."
        )
    return path


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Load the weights in a file of the same architecture into a Functional model.

    In the Keras 3 formats layers are matched by class and by order within the class; in a legacy
    file by name where all names agree, else by order, as in Keras. Links and data outside the file
    are refused; a file of `save_weights` is compared with its digest.

    Args:
        model: built; unchanged unless everything fits.
        path: in one of the formats above, detected by content; a legacy file may also hold the
            model's configuration.

    Raises:
        ModelFileError: no such file, truncated, or of another architecture: names the first
            weight that differs, and `classes` if only the head differs.
    """
    path = weight_file(path)
    with _opened(path) as file:
        pairs = _legacy_pairs(model, file) or _keras3_pairs(model, file)
        if not pairs:
            raise ModelFileError(f"{path} holds no weights in a known layout; there are {_FORMATS}")
        if mismatch := _first_mismatch(pairs):
            raise ModelFileError(
                f"{path} does not fit {model.name}: {mismatch} The model is unchanged."
            )
        values = [[np.asarray(array) for array in saved.arrays] for _, saved in pairs]
    for (target, _), arrays in zip(pairs, values, strict=True):
        for variable, array in zip(target.arrays, arrays, strict=True):
            variable.assign(array)
    finalize(model)


def finalize(model: keras.Model) -> None:
    """Update normalisation layers after values were assigned to their variables."""
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def save_weights(model: keras.Model, path: str | Path) -> Path:
    """Write the weights of `model` to `path` (.weights.h5), atomically, with their digest.

    Raises:
        InputError: the path does not end in .weights.h5.
        StorageError: the file could not be written.
    """
    path = Path(path)
    if not path.name.endswith(".weights.h5"):
        raise InputError(f"a file of weights ends in .weights.h5, got {path.name!r}")
    with atomic_path(path) as temporary:
        model.save_weights(temporary)
        with h5py.File(temporary, "r+") as file:
            file.attrs[_DIGEST] = content_sha256(file)
    return path


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, or in the archive there, once it was checked."""
    try:
        content = path
        if _first_bytes(path) == b"PK\3\4":
            check_archive(path)
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(content, "r") as file:
            check_hdf5(file)
            if _DIGEST in file.attrs and file.attrs[_DIGEST] != content_sha256(file):
                raise ModelFileError(f"{path} is damaged: its weights are not those of its digest")
            yield file
    except ModelFileError:
        raise
    except Exception as error:  # h5py and zipfile raise many kinds for damaged files
        raise ModelFileError(
            f"{path} cannot be read as a weight file ({type(error).__name__}: {error}). It is "
            f"truncated, damaged or in another format; there are {_FORMATS}."
        ) from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _keras3_pairs(model: keras.Model, file: h5py.File) -> list[_Pair]:
    """Pairs of matching layers of model and file in the model's order, then the file's others."""
    if "layers" not in file:
        return []
    saved = dict(_saved_keras3(file["layers"]))
    pairs = [(target, saved.pop(key, None)) for key, target in _model_layers(model)]
    return [*pairs, *((None, rest) for rest in saved.values())]


def _model_layers(model: keras.Model, within: _Key = ()) -> Iterator[tuple[_Key, _Weights]]:
    count = collections.Counter()
    for layer in model.layers:
        kind = _kind(type(layer).__name__)
        key = (*within, (kind, count[kind]))
        count[kind] += 1
        if isinstance(layer, keras.Model):
            yield from _model_layers(layer, key)
        elif layer.weights:
            yield key, _Weights(layer.name, layer.weights)


def _saved_keras3(group: h5py.Group, within: _Key = ()) -> Iterator[tuple[_Key, _Weights]]:
    for name, child in group.items():
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
        key = (*within, (_kind(kind), int(number or 0)))
        if "layers" in child:
            yield from _saved_keras3(child["layers"], key)
        elif len(child.get("vars", ())):
            arrays = child["vars"]
            layer_name = str(arrays.attrs.get("name", name))
            yield key, _Weights(layer_name, [arrays[str(k)] for k in range(len(arrays))])


def _kind(name: str) -> str:
    """A spelling common to a class (`DepthwiseConv2D`) and its name in a file."""
    kind = name.replace("_", "").lower()
    frozen = kind == FrozenBatchNormalization.__name__.lower()
    return "batchnormalization" if frozen else kind


def _legacy_pairs(model: keras.Model, file: h5py.File) -> list[_Pair]:
    group = file.get("model_weights", file)
    saved = [_saved_legacy(name, group[name]) for name in _strings(group, "layer_names")]
    saved = [weights for weights in saved if weights.arrays]
    if not saved:
        return []
    targets = [
        _Weights(layer.name, layer.trainable_weights + layer.non_trainable_weights)
        for layer in model.layers
        if layer.weights
    ]
    by_name = {weights.layer: weights for weights in saved}
    if by_name.keys() == {weights.layer for weights in targets}:
        saved = [by_name[weights.layer] for weights in targets]
    return list(itertools.zip_longest(targets, saved))


def _saved_legacy(name: str, group: h5py.Group) -> _Weights:
    return _Weights(name, [group[weight] for weight in _strings(group, "weight_names")])


def _strings(group: h5py.Group, name: str) -> list[str]:
    """A list of strings in the attributes; Keras splits long lists into name0, name1, ..."""
    attributes = [name] if name in group.attrs else []
    if not attributes:
        numbered = (f"{name}{k}" for k in itertools.count())
        attributes = itertools.takewhile(lambda attribute: attribute in group.attrs, numbered)
    texts = [text for attribute in attributes for text in group.attrs[attribute]]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _first_mismatch(pairs: list[_Pair]) -> str | None:
    """A sentence about the first difference, or None if file and model fit."""
    for target, saved in pairs:
        if target is None:
            return (
                f"the file's layer {saved.layer!r}, of shapes {saved.shapes}, is not in the model."
            )
        if saved is None:
            return (
                f"the model's layer {target.layer!r}, of shapes {target.shapes}, is not in the "
                "file."
            )
        layer = f"layer {target.layer!r}"
        if saved.layer != target.layer:
            layer += f" ({saved.layer!r} in the file)"
        if len(target.arrays) != len(saved.arrays):
            return (
                f"{layer} has weights of shapes {target.shapes} in the model and {saved.shapes} in "
                "the file."
            )
        for variable, array in zip(target.arrays, saved.arrays, strict=True):
            if array.dtype.kind not in "fiu":
                return f"weight {variable.name!r} of {layer} is stored as {array.dtype}."
            shape, saved_shape = tuple(variable.shape), tuple(array.shape)
            if shape != saved_shape:
                text = (
                    f"weight {variable.name!r} of {layer} has shape {shape} in the model and "
                    f"{saved_shape} in the file."
                )
                if target is pairs[-1][0] and shape[:-1] == saved_shape[:-1]:
                    text += (
                        f" All else fits; that head has {saved_shape[-1]} classes: build with "
                        f"classes={saved_shape[-1]}."
                    )
                return text
    return None
