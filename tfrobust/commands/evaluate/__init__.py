"""`tfrobust evaluate`: accuracy, robust accuracy and alignment of one model in one call."""

from tfrobust.commands.evaluate.command import Command, execute

__all__ = ["Command", "execute"]
