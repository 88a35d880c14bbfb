"""`tfrobust rank`: saved models ranked by how robust they are, three ways."""

from tfrobust.commands.rank.command import Command, execute

__all__ = ["Command", "execute"]
