"""Files that are either whole or absent: atomic writes and checked folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tfrobust.errors import InputError, StorageError

__all__ = ["atomic_path", "check_archive", "check_expansion", "remove_partial", "writable_folder"]

# of the folders in which files are written: nothing in them is finished
_PARTIAL = ".partial-"
# bytes that a file may expand to when it is read, whatever its size; and a multiple of its size
_EXPANDED = 2**28
_MOST = 100


def writable_folder(path: str | Path) -> Path:
    """Create `path` where it does not exist, and test that it can be written to.

    Raises:
        StorageError: the folder cannot be created or written to; says what to do.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            f"cannot write to the folder {folder}: {error.strerror or error}. "
            "Choose another folder, or make this one writable."
        ) from error
    return folder


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    The temporary file lies in a hidden folder of its own, so that patterns such as `*.keras` do not
    find it. A killed process or a full disk leaves an existing file unchanged; what a killed
    process had begun is removed by the next one that locks the folder (`tfrobust.locks`).

    Raises:
        StorageError: the file could not be written; names it.
    """
    target = Path(path)
    place = None
    try:
        place = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
        # the same name: Keras and others choose the format by the suffix, such as ".weights.h5"
        temporary = place / target.name
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise StorageError(
            f"could not write {target}: {error.strerror or error}. "
            "What was there before is unchanged."
        ) from error
    finally:
        if place is not None:  # report the first error, not one of cleaning up
            shutil.rmtree(place, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove what killed writers have left below a folder in which no one else writes."""
    for path in list(folder.rglob(f"{_PARTIAL}*")):  # earlier versions wrote files, not folders
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def check_archive(path: Path) -> None:
    """Refuse a zip archive whose members would fill the memory, before one of them is read.

    Raises:
        InputError: they declare more than 256 MiB and more than 100 times the archive's size.
        zipfile.BadZipFile, OSError: it is no archive, or cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    check_expansion(str(path), declared, path.stat().st_size)


def check_expansion(name: str, declared: int, stored: int) -> None:
    """Refuse what would expand to far more bytes than are stored.

    Raises:
        InputError: more than 256 MiB and more than 100 times as many.
    """
    if declared > max(_EXPANDED, _MOST * stored):
        raise InputError(
            f"{name} would expand from {stored} to {declared} bytes: it is damaged, or made to "
            "fill the memory"
        )
