"""SHA-256 digests of arrays and of models: which data and which model a result belongs to."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import keras
import numpy as np

from tfrobust.classifier import all_layers

__all__ = ["architecture_sha256", "values_sha256", "weights_sha256"]

# parts of a configuration that do not change what a model computes in inference
_NOT_COMPUTED = ("build_config", "compile_config", "trainable")
# where a configuration has names of layers; elsewhere an equal text means something else
_NAMES = ("name", "keras_history", "input_layers", "output_layers")
# bytes that are converted and hashed at once
_BYTES = 2**24


def values_sha256(array: np.ndarray, dtype: str) -> str:
    """Digest of the values of an array (count, ...), as numbers of four bytes of `dtype`."""
    result = hashlib.sha256()
    rows = max(1, _BYTES // (4 * math.prod(array.shape[1:]) or 1))
    for start in range(0, len(array), rows):
        result.update(np.ascontiguousarray(array[start : start + rows], dtype).data)
    return result.hexdigest()


def weights_sha256(model: keras.Model) -> str:
    """Digest of the values of all weights, moving statistics included, seeds excluded."""
    result = hashlib.sha256()
    for value in model.get_weights():
        result.update(f"{value.dtype} {value.shape}".encode())
        result.update(value.tobytes())
    return result.hexdigest()


def architecture_sha256(model: keras.Model) -> str:
    """Digest of the serialized configuration; of the layers' classes where there is none.

    The numbers in names of layers, which count the layers that a process has created, are left out.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
    except (NotImplementedError, TypeError, ValueError):
        config = [
            f"{type(each).__module__}.{type(each).__qualname__}" for each in all_layers(model)
        ]
    names: dict[str, str] = {}
    _collect_names(config, names)
    text = json.dumps(_renamed(config, names), sort_keys=True, default=lambda v: type(v).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _collect_names(config: Any, names: dict[str, str]) -> None:
    """Replace in `names`: a name by its text without a number, and its place among the names."""
    if isinstance(config, dict):
        name = config.get("name")
        if isinstance(name, str):
            names.setdefault(name, f"{re.sub(r'_[0-9]+$', '', name)}#{len(names)}")
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list, tuple)):
            _collect_names(value, names)


def _renamed(config: Any, names: dict[str, str], is_name: bool = False) -> Any:
    if isinstance(config, dict):
        return {
            key: _renamed(value, names, is_name or key in _NAMES)
            for key, value in config.items()
            if key not in _NOT_COMPUTED
        }
    if isinstance(config, (list, tuple)):
        return [_renamed(value, names, is_name) for value in config]
    return names.get(config, config) if is_name and isinstance(config, str) else config
