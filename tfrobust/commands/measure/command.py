"""`tfrobust measure`: check cheaply, then import TensorFlow and compute."""

from __future__ import annotations

from tfrobust.commands.measure.settings import Command, check_without_model
from tfrobust.commands.quiet import import_tensorflow

__all__ = ["execute"]


def execute(command: Command) -> None:
    """Measure, write the page, print its address.

    Every step is kept in the run folder and computed once.

    Raises:
        TfrobustError: settings that make no sense or do not go together.
    """
    check_without_model(command)
    import_tensorflow()
    from tfrobust.commands.measure.steps import measure

    measure(command)
