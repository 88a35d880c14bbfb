"""`tfrobust rank`: check the settings, then import TensorFlow and compute."""

from __future__ import annotations

from tfrobust.commands.quiet import import_tensorflow
from tfrobust.commands.rank.settings import Command, check_without_model
from tfrobust.commands.terminal import show

__all__ = ["execute"]


def execute(command: Command) -> None:
    """Rank the models, print the ranking and the page's address.

    Every step is computed once and stored in the run folder. All cheap checks come before the first
    step.

    Raises:
        TfrobustError: settings are invalid or incompatible.
    """
    check_without_model(command)
    import_tensorflow()
    from tfrobust.commands.rank.steps import rank

    show(rank(command), open_it=command.open)
