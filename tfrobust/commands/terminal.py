"""What every command does at its start and end: user errors in one line, the page that was made."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from tfrobust.errors import TfrobustError

__all__ = ["run", "show"]


def run(main: Callable[[], None]) -> None:
    """Run a command; an error that the user can mend is one line and status 1.

    The only place where such errors are caught.

    Raises:
        SystemExit: after such an error.
    """
    try:
        main()
    except (TfrobustError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command resumes where it stopped")


def show(page: Path, *, open_it: bool) -> None:
    """Print the page's address; open it where there is a screen and the user asked for it."""
    print(f"\nreport: {page.resolve().as_uri()}")
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
    if open_it and has_screen:
        webbrowser.open(page.resolve().as_uri())
