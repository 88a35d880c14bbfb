"""Checks of settings: what makes no sense is an error before anything is computed or written."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from tfrobust.errors import InputError

__all__ = ["at_least", "distinct", "one_of", "option", "positive"]


def option(name: str) -> str:
    """A setting as the command line spells it."""
    return "--" + name.replace("_", "-")


def at_least(settings: Any, least: int, *names: str) -> None:
    """Raises: InputError where one of the settings, or an entry of it, is less than `least`."""
    for name in names:
        for value in _entries(settings, name):
            if value < least:
                raise InputError(f"{option(name)} must be at least {least}, got {value}")


def positive(settings: Any, *names: str, zero: bool = False) -> None:
    """Raises: InputError where a number is not finite and positive; `zero` allows 0 too."""
    for name in names:
        for value in _entries(settings, name):
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
                allowed = "not negative" if zero else "positive"
                raise InputError(f"{option(name)} must be finite and {allowed}, got {value:g}")


def one_of(settings: Any, allowed: Collection[str], *names: str) -> None:
    """Raises: InputError where one of the settings, or an entry of it, is not allowed."""
    for name in names:
        for value in _entries(settings, name):
            if value not in allowed:
                raise InputError(f"{option(name)} takes {', '.join(allowed)}, got {value!r}")


def distinct(settings: Any, *names: str) -> None:
    """Raises: InputError where a list is empty, or holds a value twice (to six digits)."""
    for name in names:
        values = [v if isinstance(v, str) else f"{v:g}" for v in getattr(settings, name)]
        if not values:
            raise InputError(f"{option(name)} needs at least one value")
        doubles = sorted({value for value in values if values.count(value) > 1})
        if doubles:
            raise InputError(f"{option(name)} holds {', '.join(doubles)} more than once")


def _entries(settings: Any, name: str) -> tuple[Any, ...]:
    """The values of a setting; none where it is unset."""
    value = getattr(settings, name)
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)
