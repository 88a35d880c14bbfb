"""`tfrobust report`: check the settings and folders, then import TensorFlow and compute."""

from __future__ import annotations

from tfrobust.commands.quiet import import_tensorflow
from tfrobust.commands.report.settings import Command, check_without_model, classifiers_in
from tfrobust.commands.terminal import show

__all__ = ["execute"]


def execute(command: Command) -> None:
    """Measure the classifiers, print the table and the page's address.

    Each classifier is measured once and its results are stored in the folder of the report. All
    cheap checks come before the first measurement.

    Raises:
        TfrobustError: settings are invalid, a folder holds no run, or data are not at hand.
    """
    check_without_model(command)
    found = classifiers_in(command.runs)
    import_tensorflow()
    from tfrobust.commands.report.steps import report

    show(report(command, found), open_it=command.open)
