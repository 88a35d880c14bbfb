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
    """Make `path` if need be and prove that it can be written to.

    Raises:
        OSError: the folder cannot be made or written to, with what to do about it.
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
    """A temporary path beside `path`, moved over it when the block ends without an error.

    A killed process or a full disk leaves the file that was there before untouched.

    Raises:
        OSError: the file could not be written, naming it.
    """
    target = Path(path)
    # the name stays last: savers choose their format by its ending, ".weights.h5" among them
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
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink()
