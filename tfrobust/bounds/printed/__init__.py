"""The rules as the thesis prints them: not always lower bounds."""

from tfrobust.bounds.printed.bound import thesis

__all__ = ["thesis"]
