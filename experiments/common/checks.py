"""What settings accept, declared with their types; anything else is an error before the run begins.

    @dataclasses.dataclass(frozen=True)
    class Settings:
        epochs: Count = 10
        weights: Annotated[tuple[NotNegative, ...], DISTINCT] = (0.0, 1.0)

Choices are `Literal` types, which the command line checks by itself.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any

from tfrobust.errors import InputError

__all__ = [
    "DISTINCT",
    "Count",
    "Index",
    "NotNegative",
    "Positive",
    "Seed",
    "at_least",
    "check",
    "option",
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is wrong with a value, in words; None if nothing is."""

    complaint: Callable[[Any], str | None]


def at_least(least: int) -> Rule:
    """An integer from `least` on."""
    return Rule(lambda value: f"must be at least {least}, got {value}" if value < least else None)


def _positive(value: float) -> str | None:
    accepted = math.isfinite(value) and value > 0
    return None if accepted else f"must be finite and positive, got {value:g}"


def _not_negative(value: float) -> str | None:
    accepted = math.isfinite(value) and value >= 0
    return None if accepted else f"must be finite and not negative, got {value:g}"


def _distinct(values: tuple[Any, ...]) -> str | None:
    shown = [f"{each:g}" if isinstance(each, int | float) else str(each) for each in values]
    repeated = sorted({value for value in shown if shown.count(value) > 1})
    if repeated:
        return f"holds {', '.join(repeated)} more than once"
    return None if shown else "needs at least one value"


def _seed(value: int) -> str | None:
    accepted = 0 <= value < 2**32
    return None if accepted else f"must be from 0 to 2^32 - 1, got {value}"


Count = Annotated[int, at_least(1)]
Index = Annotated[int, at_least(0)]
Seed = Annotated[int, Rule(_seed)]
Positive = Annotated[float, Rule(_positive)]
NotNegative = Annotated[float, Rule(_not_negative)]
DISTINCT = Rule(_distinct)
"""Of a tuple: not empty, and no value twice (numbers to six digits, as folders are named)."""


def check(settings: Any) -> None:
    """Hold every setting against its type's rules.

    Raises:
        InputError: the first that breaks one; the message names the option.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        _check(option(name), getattr(settings, name), hint)


def option(name: str) -> str:
    """A setting as the command line spells it."""
    return "--" + name.replace("_", "-")


def _check(name: str, value: Any, hint: Any) -> None:
    parts = typing.get_args(hint)
    if isinstance(value, tuple) and typing.get_origin(hint) is tuple:
        for entry in value:
            _check(name, entry, parts[0])
    elif typing.get_origin(hint) is Annotated:
        _check(name, value, parts[0])
        for rule in parts[1:]:
            complaint = rule.complaint(value) if isinstance(rule, Rule) else None
            if complaint:
                raise InputError(f"{name} {complaint}")
    elif value is not None and type(None) in parts:  # a type, or None where it is not set
        _check(name, value, next(part for part in parts if part is not type(None)))
