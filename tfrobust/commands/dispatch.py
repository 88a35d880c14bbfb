"""The command `tfrobust`: measure, rank, evaluate, report and list."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from tfrobust.commands.terminal import run

__all__ = ["COMMANDS", "main"]

# name: module with its `Command` (settings, for tyro) and `execute`, and a summary. A module is
# imported only for its command, TensorFlow only after the settings have been checked.
COMMANDS = {
    "measure": ("measure", "alignment, linearized robustness and saliency maps of one model"),
    "rank": ("rank", "saved models by certified bound, linearized robustness, attack distance"),
    "evaluate": ("evaluate", "one model: accuracy, robust and certified accuracy, alignment"),
    "report": ("report", "trained classifiers of several studies' run folders in one table"),
    "list": ("catalogue", "the repository's experiments: needs and cost of their presets"),
}
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands.

    Args:
        arguments: the command line; sys.argv where None.

    Raises:
        SystemExit: status 2 for a wrong command line, 1 for any other user error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    run(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> None:
    if not arguments:
        print(_usage(), file=sys.stderr)
        sys.exit(_USAGE_ERROR)
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(_usage())
    elif name == "--version":
        print(f"tfrobust {importlib.metadata.version('tfrobust')}")
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(COMMANDS)
        print(f"error: no command {name!r}; there are {known}.{hint}", file=sys.stderr)
        sys.exit(_USAGE_ERROR)
    else:
        import tyro

        module = importlib.import_module(f"tfrobust.commands.{COMMANDS[name][0]}")
        module.execute(tyro.cli(module.Command, prog=f"tfrobust {name}", args=rest))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: tfrobust COMMAND ...",
            "",
            *lines,
            "",
            "tfrobust COMMAND --help shows a command's settings.",
        )
    )
