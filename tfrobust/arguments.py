"""Validated arguments: integers, positive numbers, ranges of pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfrobust.errors import InputError

__all__ = [
    "PIXEL_ROUNDING",
    "as_count",
    "as_not_negative",
    "as_pixels",
    "as_positive",
    "as_range",
    "as_seed",
    "check_pixels",
]

# float rounding that is clipped away, relative to the width of the value range
PIXEL_ROUNDING = 1e-6
# seeds of NumPy's old generators, which Keras seeds too, are below
_SEEDS = 2**32


def as_range(value_range: Any) -> tuple[float, float]:
    """(minimum, maximum) of the pixels, rounded to float32.

    Raises:
        InputError: not two finite numbers, the first less than the second.
    """
    try:
        values = np.asarray(value_range)
    except ValueError:  # ragged
        values = np.empty(0)
    fits = values.shape == (2,) and values.dtype.kind in "fiu"
    # float32, like the images: .1 in double precision is less than .1 in single
    low, high = (float(value) for value in values.astype(np.float32)) if fits else (0.0, 0.0)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"value_range must be (minimum, maximum), got {value_range!r}")
    return low, high


def as_pixels(name: str, x: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """x clipped to the range, which it may leave by rounding only.

    Raises:
        InputError: values further outside.
    """
    check_pixels(name, x, value_range)
    return np.clip(x, *value_range)


def check_pixels(name: str, x: np.ndarray, value_range: tuple[float, float]) -> None:
    """Refuse values outside the range by more than rounding.

    Raises:
        InputError: names the values and the range.
    """
    low, high = value_range
    slack = PIXEL_ROUNDING * (high - low)
    if x.min() < low - slack or x.max() > high + slack:
        raise InputError(
            f"{name} holds values from {x.min():g} to {x.max():g}, outside value_range "
            f"({low:g}, {high:g}): rescale the images, or give the range of the model's input"
        )


def as_count(name: str, value: Any, least: int) -> int:
    """`value` as an integer of at least `least`; `name` is the argument's, for the message.

    Raises:
        InputError: not a whole number, not finite, or less than `least`.
    """
    number = _as_float(value)
    if not math.isfinite(number) or number != int(number) or number < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(number)


def as_seed(name: str, value: Any) -> int:
    """`value` as a seed that NumPy, Keras and TensorFlow take: a whole number from 0 to 2^32 - 1.

    Raises:
        InputError: anything else; `name` is the argument's, for the message.
    """
    seed = as_count(name, value, 0)
    if seed >= _SEEDS:
        raise InputError(f"{name} must be below 2^32, got {value!r}")
    return seed


def as_positive(name: str, value: Any) -> float:
    """`value` as a finite number above 0; `name` is the argument's, for the message.

    Raises:
        InputError: not a number, not finite, 0 or less.
    """
    number = _as_float(value)
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be positive and finite, got {value!r}")
    return number


def as_not_negative(name: str, value: Any) -> float:
    """`value` as a finite number of at least 0; `name` is the argument's, for the message.

    Raises:
        InputError: not a number, not finite, or less than 0.
    """
    number = _as_float(value)
    if not 0 <= number < math.inf:
        raise InputError(f"{name} must be at least 0 and finite, got {value!r}")
    return number


def _as_float(value: Any) -> float:
    """`value` as a float; NaN where it is not a number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan
