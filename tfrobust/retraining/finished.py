"""Finished retrains: one small file each, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from tfrobust.distribution import is_chief
from tfrobust.errors import TfrobustError
from tfrobust.files import atomic_path
from tfrobust.locks import FolderLock
from tfrobust.training import SettingsChangedError

__all__ = ["DamagedRetrainError", "FinishedRetrains"]


class DamagedRetrainError(TfrobustError, RuntimeError):
    """The file of a finished retrain cannot be read."""


class FinishedRetrains:
    """The results of finished retrains in a folder, by name.

    Args:
        folder: created where it does not exist; None to keep nothing. The chief writes, and keeps
            other processes out until `close`.

    Raises:
        FolderInUseError: another process, or another call in this one, retrains in the folder.
        OSError: the folder is not writable.
    """

    def __init__(self, folder: str | Path | None):
        self._folder = None if folder is None else Path(folder)
        self._stack, self._lock = contextlib.ExitStack(), None
        if self._folder is not None and is_chief():
            self._lock = self._stack.enter_context(FolderLock.for_one_call(self._folder))

    def close(self) -> None:
        """Let other processes in."""
        self._lock = None
        self._stack.close()

    def read(self, name: str, settings: dict[str, Any]) -> dict[str, float] | None:
        """The result of a retrain; None where it is not finished.

        Args:
            name: of the retrain, a file name without its suffix.
            settings: plain data that the result depends on.

        Raises:
            SettingsChangedError: the file is of other settings; names the first that differs.
            DamagedRetrainError: the file cannot be read.
        """
        if self._folder is None or not self._path(name).exists():
            return None
        path = self._path(name)
        try:
            content = json.loads(path.read_text())
            known = dict(content["settings"])
            result = {key: float(content["result"][key]) for key in ("accuracy", "loss")}
            if content.get("sha256", _sha256(content)) != _sha256(content):
                raise DamagedRetrainError("its contents have changed since it was written")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DamagedRetrainError(
                f"the finished retrain {path} is damaged ({error}). Delete it to train it again."
            ) from error
        for key, value in _plain(settings).items():
            if known.get(key) != value:
                raise SettingsChangedError(
                    f"{path} holds a retrain with another {key}: {known.get(key)}, now {value}. "
                    "Give another folder, or delete this file to train it again."
                )
        return result

    def write(self, name: str, settings: dict[str, Any], result: dict[str, float]) -> None:
        """Keep the result of a finished retrain.

        Raises:
            FolderLostError: the folder was deleted in the meantime.
            OSError: it could not be written.
        """
        if self._lock is None:
            return
        self._lock.check()
        with atomic_path(self._path(name)) as temporary:
            content = {"settings": _plain(settings), "result": result}
            content["sha256"] = _sha256(content)
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _sha256(content: dict[str, Any]) -> str:
    """Of settings and result; earlier versions kept none."""
    text = json.dumps([content["settings"], content["result"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As read from a file."""
    return json.loads(json.dumps(settings))
