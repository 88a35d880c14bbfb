"""Shared by all commands: user errors as one line, checks of paths, the address of the page."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfrobust.errors import InputError, MissingFileError, TfrobustError, TfrobustWarning
from tfrobust.interrupts import interruptible

__all__ = ["concerning", "existing_file", "existing_folder", "run", "show"]

# as in shells: plus the number of the signal
_SIGNALLED = 128
_CLOSED_PIPE = _SIGNALLED + 13


def run(main: Callable[[], None]) -> None:
    """Run a command; a user error becomes one line and status 1.

    The only place where user errors are caught.

    Raises:
        SystemExit: after a user error, Ctrl-C, or SIGTERM.
    """
    with _short_warnings(), interruptible() as received:
        try:
            main()
        except BrokenPipeError:  # `tfrobust list | head` has closed its input
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(_CLOSED_PIPE)
        except (KeyboardInterrupt, Exception) as error:
            if received.number is not None or isinstance(error, KeyboardInterrupt):
                print(
                    "\ninterrupted; a run folder keeps the steps that are finished, and the same "
                    "command resumes after them",
                    file=sys.stderr,
                )
                sys.exit(_SIGNALLED + (received.number or signal.SIGINT))
            if isinstance(error, (TfrobustError, OSError)):
                sys.exit(f"error: {' '.join(str(error).split())}")
            raise


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """The library's warnings are one line too, without the position in the code."""
    previous = warnings.formatwarning

    def formatted(message: Warning, category: type[Warning], *position: Any, **options: Any) -> str:
        if issubclass(category, TfrobustWarning):
            return f"warning: {message}\n"
        return previous(message, category, *position, **options)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = previous


@contextlib.contextmanager
def concerning(subject: str) -> Iterator[None]:
    """User errors in the block name their subject, for instance one of several models."""
    try:
        yield
    except TfrobustError as error:
        raise InputError(f"{subject}: {error}") from error


def existing_folder(path: str | Path) -> Path:
    """`path`. Raises: MissingFileError unless it is a folder."""
    path = Path(path)
    if not path.is_dir():
        raise MissingFileError(f"there is no folder {path}")
    return path


def existing_file(path: str | Path, kind: str) -> Path:
    """`path`. Raises: MissingFileError unless it is a file; `kind` describes it in the message."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no {kind} file {path}")
    return path


def show(page: Path, *, open_it: bool) -> None:
    """Print the page's address; with `open_it`, open the page where there is a screen."""
    print(f"\nreport: {page.resolve().as_uri()}")
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
    if open_it and has_screen:
        webbrowser.open(page.resolve().as_uri())
