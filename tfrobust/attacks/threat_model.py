"""What an adversary may change, and how it searches for the change."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from tfrobust.arguments import as_count, as_not_negative, as_positive, as_range
from tfrobust.errors import InputError

__all__ = ["RandomStart", "SearchObjective", "ThreatModel", "as_epsilon"]

SearchObjective = Literal["cross_entropy", "carlini_wagner"]
RandomStart = Literal["ball", "image"]
_CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": (2, math.inf),
    "objective": ("cross_entropy", "carlini_wagner"),
    "rival": ("others", "not_below_zero"),
    "random_start": (None, "ball", "image"),
    "order": ("project_then_clip", "clip_then_project"),
}


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """All images of `value_range` within epsilon of an image, searched by projected gradient.

    Args:
        norm: p of the ball, 2 or infinity.
        epsilon: its radius, in the units of the model's input; 0 is the image alone.
        step_size: length of a step in the same norm; 2.5 * epsilon / steps where None (Madry 2018).
        steps: number of gradient steps.
        objective: what is maximised: the "cross_entropy" of the attacked class, or
            "carlini_wagner", -relu(z_y - max_{j != y} z_j + kappa) (Kim 2019, eq. (2)).
        kappa: of "carlini_wagner": the search gains nothing once the attacked class is kappa behind
            the largest other logit.
        rival: of "carlini_wagner": the largest of the "others"' logits, or "not_below_zero", the
            released code's maximum over (1 - onehot) * z, which is never below 0.
        random_start: None starts at the image itself. "ball" draws from the ball uniformly, then
            clips; "image" draws an image of the value range uniformly and projects it onto the ball
            (advertorch's l2 start).
        floor: 0 for a direction that does not underflow: a positive multiple of the objective's
            gradient, divided by its norm. A positive number divides the plain gradient g of each
            example's cross-entropy by max(||g||_2, floor), as released codes do, so that examples
            classified with confidence stand still: 1e-8 in Kim 2019 (added there), and 1e-6 times
            the batch size in advertorch, whose g is that of the batch mean (Noack 2020). The l-inf
            step is sign(g) of the plain gradient, whatever the positive number is.
        order: "project_then_clip" (Kim 2019) or "clip_then_project" (advertorch). Both end inside
            ball and range; they differ for l2 only.
        value_range: smallest and largest valid pixel.

    Raises:
        InputError: a setting is invalid.

    Source: Madry et al. 2018; Kim 2019, section 2; Noack 2020, section 4.
    """

    _: dataclasses.KW_ONLY
    norm: float
    epsilon: float
    step_size: float | None = None
    steps: int = 40
    objective: SearchObjective = "cross_entropy"
    kappa: float = 500.0
    rival: Literal["others", "not_below_zero"] = "others"
    random_start: RandomStart | None = None
    floor: float = 0.0
    order: Literal["project_then_clip", "clip_then_project"] = "project_then_clip"
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(map(repr, choices))
                raise InputError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        checked = {
            "norm": math.inf if self.norm == math.inf else 2,
            "epsilon": as_not_negative("epsilon", self.epsilon),
            "steps": as_count("steps", self.steps, 1),
            "kappa": as_not_negative("kappa", self.kappa),
            "floor": as_not_negative("floor", self.floor),
            "value_range": as_range(self.value_range),
        }
        if self.step_size is not None:
            checked["step_size"] = as_positive("step_size", self.step_size)
        if self.floor > 0 and self.objective != "cross_entropy":
            raise InputError("floor is a setting of the cross-entropy's gradient only")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check_epsilon(self, input_shape: tuple[int, ...]) -> None:
        """Refuse a radius that no two images of the value range are apart.

        Args:
            input_shape: of one example.

        Raises:
            InputError: epsilon is larger, which is a mistake of units.
        """
        as_epsilon(self, self.epsilon, 1, input_shape)

    def __str__(self) -> str:
        """Short name of the threat model, for tables and messages."""
        name = "linf" if self.norm == math.inf else "l2"
        words = [f"{name} {self.epsilon:g}", f"{self.steps} steps"]
        if self.objective != "cross_entropy":
            words.append("CW")
        return ", ".join(words)


def as_epsilon(
    threat: ThreatModel, epsilon: Any, count: int, input_shape: tuple[int, ...]
) -> np.ndarray:
    """One radius per example, (count,) float32, checked.

    Args:
        threat: its norm and value range.
        epsilon: a number, or one per example.
        count: number of examples.
        input_shape: of one example.

    Raises:
        InputError: negative, not finite, of another shape, or larger than the value range allows.
    """
    try:
        values = np.asarray(epsilon)
    except ValueError:  # ragged
        values = np.empty((), object)
    values = values.astype(np.float64) if values.dtype.kind in "fiu" else np.full((), np.nan)
    if values.shape not in ((), (count,)):
        raise InputError(
            f"epsilon must be a number or have shape ({count},), got shape {values.shape}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError(f"epsilon must be at least 0 and finite, got {epsilon!r}")
    low, high = threat.value_range
    largest = high - low
    if threat.norm == 2:
        largest *= math.sqrt(math.prod(input_shape))
    if values.max(initial=0) > largest * (1 + 1e-6):
        raise InputError(
            f"epsilon {values.max():g} exceeds {largest:g}, the largest distance in this norm "
            f"between images in ({low:g}, {high:g}): give epsilon in the units of the model's input"
        )
    return np.broadcast_to(values.astype(np.float32), (count,))
