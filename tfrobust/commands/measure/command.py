"""`tfrobust measure`: check the settings, then import TensorFlow and compute."""

from __future__ import annotations

from tfrobust.commands.measure.settings import Command, check_without_model
from tfrobust.commands.quiet import import_tensorflow

__all__ = ["execute"]


def execute(command: Command) -> None:
    """Measure, write the page, print its address.

    Every step is computed once and stored in the run folder.

    Raises:
        TfrobustError: settings are invalid or incompatible.
    """
    check_without_model(command)
    import_tensorflow()
    from tfrobust.commands.measure.steps import measure

    measure(command)
