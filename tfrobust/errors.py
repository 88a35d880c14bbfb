"""The base class of user errors, and the library's warnings.

Every error also derives from a built-in class (`ValueError`, `OSError`, ...). An error of a single
concept is defined in that concept's module, derived from this base class.
"""

__all__ = [
    "CorruptImageWarning",
    "InexactDecompositionWarning",
    "InputError",
    "InputTypeError",
    "MissingFileError",
    "PrintedRulesWarning",
    "ShortShardWarning",
    "StorageError",
    "TfrobustError",
    "TfrobustWarning",
    "UnlockedFolderWarning",
    "WaitingForFolderWarning",
]


class TfrobustError(Exception):
    """Data, a model, a setting or the environment is invalid; the message says what to do."""


class InputError(TfrobustError, ValueError):
    """An argument has a wrong shape or value."""


class InputTypeError(TfrobustError, TypeError):
    """An argument has a wrong type."""


class MissingFileError(TfrobustError, FileNotFoundError):
    """A file or folder does not exist."""


class StorageError(TfrobustError, OSError):
    """A folder or disk cannot be written to; existing files are unchanged."""


class TfrobustWarning(UserWarning):
    """Base class of the library's warnings."""


class CorruptImageWarning(TfrobustWarning):
    """An image file is corrupt and was skipped.

    Args:
        file: its name.
        reason: why it cannot be decoded.
        count: files skipped so far.
        limit: files that may be skipped.
    """

    def __init__(self, file: str, reason: str, count: int, limit: int):
        super().__init__(file, reason, count, limit)  # so that it can be pickled
        self.file = file
        self.reason = reason
        self.count = count
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.file} is corrupt and skipped ({self.reason}); {self.count} so far, "
            f"max_corrupt={self.limit}"
        )


class InexactDecompositionWarning(TfrobustWarning):
    """A network is outside the class of Etmann 2019, Theorem 1."""


class PrintedRulesWarning(TfrobustWarning):
    """The thesis's printed rules are not always lower bounds (Peck 2017; see the errata)."""


class ShortShardWarning(TfrobustWarning):
    """A TFRecord shard holds fewer examples than the others: it may not be whole."""


class UnlockedFolderWarning(TfrobustWarning):
    """The storage of a folder has no file locks: two processes in it are not kept apart."""


class WaitingForFolderWarning(TfrobustWarning):
    """A member of a cohort waits for a folder that another process is working in."""
