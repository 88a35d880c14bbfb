"""`tfrobust rank`: check cheaply, then import TensorFlow and compute."""

from __future__ import annotations

from tfrobust.commands.quiet import import_tensorflow
from tfrobust.commands.rank.settings import Command, check_without_model
from tfrobust.commands.terminal import show

__all__ = ["execute"]


def execute(command: Command) -> None:
    """Rank the models, print the ranking and the page's address.

    Every step is kept in the run folder and computed once. Whatever can be checked cheaply is,
    before anything is computed.

    Raises:
        TfrobustError: settings that make no sense or do not go together.
    """
    check_without_model(command)
    import_tensorflow()
    from tfrobust.commands.rank.steps import rank

    show(rank(command), open_it=command.open)
