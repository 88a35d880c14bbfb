"""The rules as the thesis prints them: not always lower bounds."""

from tfrobust.bounds.printed.rules import thesis

__all__ = ["thesis"]
