"""`tfrobust report`: the classifiers of several studies in one table."""

from tfrobust.commands.report.command import execute
from tfrobust.commands.report.settings import Command

__all__ = ["Command", "execute"]
