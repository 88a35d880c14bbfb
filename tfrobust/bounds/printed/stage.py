"""The unit that the thesis's rules work on: steps in a row that one rule covers."""

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
    """`rule(kappa, values)`: from kappa behind the stage to that before it, (batch,) each;
    values[i] is the input of step i."""
