"""`tfrobust rank`: saved models ranked by how robust they are, three ways."""

from tfrobust.commands.rank.command import execute
from tfrobust.commands.rank.settings import Command

__all__ = ["Command", "execute"]
