"""The unit of the thesis's rules: consecutive steps that one rule covers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Stage"]


class Stage(NamedTuple):
    """Steps `first` to `last`, which one rule covers."""

    first: int
    last: int
    description: str
    """The rule's number in the thesis."""
    rule: Callable[..., np.ndarray]
    """`rule(kappa, values)`: kappa of the stage's input from that of its output, (batch,) each;
    values[i] is the input of step i."""
