"""Files that are either whole or absent: atomic writes and checked folders."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfrobust.errors import StorageError

__all__ = ["atomic_path", "writable_folder"]


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

    A killed process or a full disk leaves an existing file unchanged.

    Raises:
        StorageError: the file could not be written; names it.
    """
    target = Path(path)
    # the name comes last: Keras and others choose the format by the suffix, such as ".weights.h5"
    temporary = target.with_name(f".partial-{os.getpid()}-{target.name}")
    try:
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
        with contextlib.suppress(OSError):  # report the first error, not this one
            temporary.unlink()
