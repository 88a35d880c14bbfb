"""The command line: top floor of the library, imported by nothing in it."""

from tfrobust.commands.dispatch import main
from tfrobust.commands.quiet import import_tensorflow
from tfrobust.commands.terminal import concerning, run, show

__all__ = ["concerning", "import_tensorflow", "main", "run", "show"]
