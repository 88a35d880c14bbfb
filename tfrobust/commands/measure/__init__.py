"""`tfrobust measure`: the measures of Etmann 2019 of any checkpoint on any images, as a page."""

from tfrobust.commands.measure.command import Command, Resolved, Settings, execute

__all__ = ["Command", "Resolved", "Settings", "execute"]
