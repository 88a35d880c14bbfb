"""Checked arguments: whole numbers, and the range of pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfrobust.errors import InputError

__all__ = ["as_count", "as_range"]


def as_range(value_range: Any) -> tuple[float, float]:
    """(minimum, maximum) of the pixels, checked.

    Raises:
        ValueError: not two finite numbers, the first less than the second.
    """
    try:
        values = np.asarray(value_range)
    except ValueError:  # ragged
        values = np.empty(0)
    fits = values.shape == (2,) and values.dtype.kind in "fiu"
    # as float32, as the images are: .1 in double precision is less than .1 in single
    low, high = (float(value) for value in values.astype(np.float32)) if fits else (0.0, 0.0)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"value_range must be (minimum, maximum), got {value_range!r}")
    return low, high


def as_count(name: str, value: Any, least: int) -> int:
    """A whole number, checked.

    Args:
        name: of the argument.
        value: what was given.
        least: smallest that is allowed.

    Raises:
        ValueError: not whole, not finite, no number, or less than `least`.
    """
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number != int(number) or number < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(number)
