"""`tfrobust evaluate`: accuracy, robust accuracy and alignment of one model in one call."""

from tfrobust.commands.evaluate.command import execute
from tfrobust.commands.evaluate.settings import Command

__all__ = ["Command", "execute"]
