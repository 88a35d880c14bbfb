"""The command line: top floor of the library, imported by nothing in it."""

from tfrobust.commands.terminal import run, show

__all__ = ["run", "show"]
