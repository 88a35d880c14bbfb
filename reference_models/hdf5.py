"""HDF5 files from strangers: whatever is read from one lies in the file itself.

HDF5 can refer to other files, which an unsuspecting reader opens: external storage, external links
and virtual data sets. Keras 3.15 refuses them when it loads a `.keras` file; here nothing is read
before the whole file was searched for them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import h5py
import numpy as np

from tfrobust.errors import InputError
from tfrobust.files import check_expansion

__all__ = ["check_hdf5", "content_sha256"]


def check_hdf5(file: h5py.File) -> None:
    """Refuse links, data outside the file, and data sets that expand to fill the memory.

    Raises:
        InputError: the file holds one of them; names it.
    """
    for _ in _datasets(file):
        pass


def content_sha256(file: h5py.File) -> str:
    """Digest of the names, types, shapes and values of all data sets."""
    result = hashlib.sha256()
    for name, dataset in sorted(_datasets(file), key=lambda pair: pair[0]):
        result.update(f"{name} {dataset.dtype.str} {dataset.shape}".encode())
        result.update(np.ascontiguousarray(dataset[()]).tobytes())
    return result.hexdigest()


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets by name, each once it is certain that it lies in the file."""
    groups, seen = [("", file["/"])], set()
    while groups:
        place, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:  # a circle of hard links
            raise InputError(f"its group {place or '/'} is in it twice")
        seen.add(address)
        for key in group:
            name = f"{place}/{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise InputError(f"its {name} is a link, possibly to another file: not followed")
            child = group[key]
            if isinstance(child, h5py.Group):
                groups.append((name, child))
            elif isinstance(child, h5py.Dataset):
                _check_dataset(name, child)
                yield name, child


def _check_dataset(name: str, dataset: h5py.Dataset) -> None:
    if dataset.external or dataset.is_virtual:
        raise InputError(f"its data set {name} takes its values from another file: not followed")
    declared = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    check_expansion(f"its data set {name}", declared, dataset.id.get_storage_size())
