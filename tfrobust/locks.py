"""Folders in which one process works at a time.

The lock is the operating system's, on an open file: it ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from tfrobust.errors import (
    StorageError,
    TfrobustError,
    UnlockedFolderWarning,
    WaitingForFolderWarning,
)
from tfrobust.files import remove_partial, writable_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["FolderInUseError", "FolderLock", "FolderLostError", "shared_with_members"]

_FILE = ".lock"
# seconds in which the lock of a process that has just been killed is awaited
_PATIENCE = 2.0
_POLL = 0.05
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)

_held: dict[Path, FolderLock] = {}
_guard = threading.RLock()
_cohort = threading.local()


class FolderInUseError(TfrobustError, RuntimeError):
    """Another process, or another call in this one, works in the folder."""


class FolderLostError(StorageError):
    """The folder was deleted or replaced while this process worked in it."""


@contextlib.contextmanager
def shared_with_members() -> Iterator[None]:
    """In the block, a member of a cohort: its run folder is shared, other folders are waited for.

    For the thread that makes a member on a worker of a cluster.
    """
    _cohort.member = True
    try:
        yield
    finally:
        _cohort.member = False


class FolderLock:
    """A folder held by this process; made by `FolderLock.of`."""

    def __init__(self, folder: Path, shared: bool, waits: bool):
        self.folder = folder
        self._descriptor = _acquired(folder, shared, waits)
        self._process = os.getpid()
        self.users, self.called = 0, False
        if not shared:
            remove_partial(folder)
            _sign(self._descriptor)

    @classmethod
    def of(cls, folder: str | Path, *, cohort: bool = False) -> FolderLock:
        """The lock of a folder, which is created where it does not exist.

        Further calls in this process return the same lock; every one needs its `release`.

        Args:
            folder: to be held.
            cohort: of a run whose members may be made by several processes: those of one cohort
                (`shared_with_members`) share it, and keep all others out.

        Raises:
            FolderInUseError: another process works in it. A member of a cohort waits instead.
            StorageError: it is not writable.
        """
        folder = writable_folder(folder).resolve()
        member = getattr(_cohort, "member", False)
        with _guard:
            lock = _held.get(folder)
            if lock is None or not lock.is_held:
                lock = _held[folder] = cls(folder, member and cohort, waits=member)
            lock.users += 1
            return lock

    @classmethod
    @contextlib.contextmanager
    def for_one_call(cls, folder: str | Path) -> Iterator[FolderLock]:
        """In the block the folder is held, and no other call in this process may enter it.

        Raises:
            FolderInUseError: another process or call, such as one of another thread, is inside; a
                member of a cohort waits for other processes.
            StorageError: it is not writable.
        """
        lock = cls.of(folder)
        try:
            with _guard:
                if lock.called:
                    raise FolderInUseError(
                        f"another call in this process is working in {folder}: wait for it, or "
                        "give another folder"
                    )
                lock.called = True
            try:
                yield lock
            finally:
                lock.called = False
        finally:
            lock.release()

    @property
    def is_held(self) -> bool:
        """Whether this process holds the folder, and it is still the same folder."""
        return (
            self._descriptor is not None
            and self._process == os.getpid()  # a forked process does not hold it
            and _is_file(self._descriptor, self.folder / _FILE)
        )

    def check(self) -> None:
        """Nothing may be written where the folder is not the one that was locked.

        Raises:
            FolderLostError: it was deleted or replaced.
        """
        if not self.is_held:
            raise FolderLostError(
                f"{self.folder} was deleted or replaced while this process was working in it: "
                "nothing more is written there. Start again."
            )

    def share(self) -> None:
        """From now on, let the members of a cohort in, and no one else.

        Raises:
            FolderInUseError: another process was faster.
        """
        if not _try(self._descriptor, self.folder, shared=True):
            raise _in_use(self.folder, self._descriptor)

    def release(self) -> None:
        """Let other processes in, once all who asked for the lock have released it."""
        with _guard:
            self.users -= 1
            if self.users or self._descriptor is None:
                return
            descriptor, self._descriptor = self._descriptor, None
            if self._process == os.getpid():
                _remove_if_alone(descriptor, self.folder / _FILE)
            os.close(descriptor)
            if _held.get(self.folder) is self:
                del _held[self.folder]


def _acquired(folder: Path, shared: bool, waits: bool) -> int:
    """A descriptor of the folder's lock file with a lock on it."""
    deadline, warned = time.monotonic() + _PATIENCE, False
    while True:
        try:
            descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(f"could not write {folder / _FILE}: {error.strerror}") from error
        try:
            if _try(descriptor, folder, shared):
                # whoever held it before may have removed the file
                if _is_file(descriptor, folder / _FILE):
                    return descriptor
            elif time.monotonic() >= deadline:
                if not waits:
                    raise _in_use(folder, descriptor)
                if not warned:
                    text = f"waiting for {folder}, in use by {_holder(descriptor)}"
                    warnings.warn(WaitingForFolderWarning(text), stacklevel=2)
                warned = True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_POLL)


def _try(descriptor: int, folder: Path, shared: bool) -> bool:
    """Whether the lock was free; True, with a warning, on storage without locks."""
    if fcntl is None:
        _warn(folder, "this system has none")
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        _warn(folder, error.strerror)
    return True


def _warn(folder: Path, reason: str) -> None:
    warnings.warn(
        UnlockedFolderWarning(
            f"the storage of {folder} offers no file locks ({reason}): make sure that no other "
            "process works in this folder"
        ),
        stacklevel=2,
    )


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        ours, there = os.fstat(descriptor), path.stat()
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _sign(descriptor: int) -> None:
    """Write who holds the lock, for the message of others."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = f"process {os.getpid()} on {socket.gethostname()} since {now}"
    with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def _in_use(folder: Path, descriptor: int) -> FolderInUseError:
    return FolderInUseError(
        f"{folder} is in use by {_holder(descriptor)}: wait until it has ended, or give another "
        "folder"
    )


def _holder(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 200).decode(errors="replace") or "another process"


def _remove_if_alone(descriptor: int, path: Path) -> None:
    """Remove the lock file if no one else holds it, while it is locked."""
    if fcntl is None or not _is_file(descriptor, path):
        return
    with contextlib.suppress(OSError):  # shared with others, or storage without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
