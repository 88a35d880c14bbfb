"""`tfrobust evaluate`: check the settings, then import TensorFlow and compute."""

from __future__ import annotations

import json

from tfrobust.commands.evaluate.settings import Command, check_without_model
from tfrobust.commands.quiet import import_tensorflow
from tfrobust.commands.terminal import show

__all__ = ["execute"]


def execute(command: Command) -> None:
    """Evaluate and print the summary; write the page if asked.

    Raises:
        TfrobustError: settings are invalid or incompatible.
    """
    check_without_model(command)
    import_tensorflow()
    from tfrobust.commands.evaluate.steps import evaluate
    from tfrobust.commands.evaluate.summary import text

    summary, page = evaluate(command)
    print(json.dumps(summary, indent=2) if command.json else text(summary))
    if page is not None and not command.json:
        show(page, open_it=command.open)
