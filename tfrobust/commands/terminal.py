"""What every command does at its start and end: user errors in one line, the page that was made."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfrobust.errors import InputError, MissingFileError, TfrobustError, TfrobustWarning

__all__ = ["concerning", "existing_file", "existing_folder", "run", "show"]

# 128 and the number of the signal, as in shells
_INTERRUPTED, _CLOSED_PIPE = 130, 141


def run(main: Callable[[], None]) -> None:
    """Run a command; an error that the user can mend is one line and status 1.

    The only place where such errors are caught.

    Raises:
        SystemExit: after such an error, or Ctrl-C.
    """
    try:
        with _short_warnings():
            main()
    except BrokenPipeError:  # of `tfrobust list | head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_CLOSED_PIPE)
    except (TfrobustError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("\ninterrupted; a run folder keeps the steps that are finished", file=sys.stderr)
        sys.exit(_INTERRUPTED)


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Our own warnings are one line too, without the place in the code."""
    before = warnings.formatwarning

    def formatted(message: Warning, category: type[Warning], *place: Any, **more: Any) -> str:
        if issubclass(category, TfrobustWarning):
            return f"warning: {message}\n"
        return before(message, category, *place, **more)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def concerning(subject: str) -> Iterator[None]:
    """User errors in the block say which subject they are about, one of several models say."""
    try:
        yield
    except TfrobustError as error:
        raise InputError(f"{subject}: {error}") from error


def existing_folder(path: str | Path) -> Path:
    """Raises: MissingFileError where there is no such folder."""
    path = Path(path)
    if not path.is_dir():
        raise MissingFileError(f"there is no folder {path}")
    return path


def existing_file(path: str | Path, kind: str) -> Path:
    """Raises: MissingFileError where there is no such file; `kind` says of what."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no {kind} file {path}")
    return path


def show(page: Path, *, open_it: bool) -> None:
    """Print the page's address; open it where there is a screen and the user asked for it."""
    print(f"\nreport: {page.resolve().as_uri()}")
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
    if open_it and has_screen:
        webbrowser.open(page.resolve().as_uri())
