"""`tfrobust measure`: the measures of Etmann 2019 of any checkpoint on any images, as a page."""

from tfrobust.commands.measure.command import execute
from tfrobust.commands.measure.settings import Command, Resolved, Settings

__all__ = ["Command", "Resolved", "Settings", "execute"]
