"""Attacks that classifiers are trained against, by name: "standard", "l2-4-xent", "linf-0.2-cw"."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from experiments.common.checks import Rule
from tfrobust import CrossEntropy, ThreatModel
from tfrobust.objectives import AdversarialTraining, Objective

__all__ = [
    "ADVERSARY",
    "STANDARD",
    "Adversary",
    "adversary_names",
    "objective_of",
    "threat_model",
]

STANDARD = "standard"
RANGE = (-1.0, 1.0)
_PATTERN = re.compile(r"(l2|linf)-(\d*\.?\d+)-(xent|cw)")
_NORMS = {"l2": 2, "linf": math.inf}


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The attack of one classifier's training.

    Attributes:
        norm: "l2" or "linf"; None for standard training.
        epsilon: radius, pixels in [-1, 1].
        objective: "xent" or "cw".
    """

    norm: Literal["l2", "linf"] | None
    epsilon: float
    objective: Literal["xent", "cw"] | None

    @classmethod
    def of(cls, name: str) -> Adversary:
        """The adversary of a name, as `ADVERSARY` accepts it."""
        if name == STANDARD:
            return cls(None, 0.0, None)
        norm, epsilon, objective = _PATTERN.fullmatch(name).groups()
        return cls(norm, float(epsilon), objective)

    @property
    def family(self) -> str:
        """Norm and objective, as the paper's legends have them."""
        return STANDARD if self.norm is None else f"{self.norm} {self.objective}"


def _malformed(name: str) -> str | None:
    if name == STANDARD or (_PATTERN.fullmatch(name) and Adversary.of(name).epsilon > 0):
        return None
    return f'must be "standard" or like "l2-4-xent" or "linf-0.2-cw", got {name!r}'


ADVERSARY = Rule(_malformed)
"""Of a setting: the name of an adversary."""


def adversary_names(norm: str, epsilons: tuple[float, ...], objective: str) -> tuple[str, ...]:
    """Names of adversaries of one norm and objective."""
    return tuple(f"{norm}-{epsilon:g}-{objective}" for epsilon in epsilons)


def threat_model(
    norm: str,
    epsilon: float,
    objective: str = "xent",
    *,
    steps: int,
    step_sizes: dict[str, float],
    floor: float,
    value_range: tuple[float, float] = RANGE,
) -> ThreatModel:
    """Projected gradient descent as in the released code: no random start, project, then clip.

    Args:
        norm: "l2" or "linf".
        epsilon: radius.
        objective: "xent" or "cw"; the released code's maximum over (1 - onehot) * z in the latter.
        steps: gradient steps.
        step_sizes: by norm.
        floor: of the cross-entropy's gradient; 0 for a direction that does not underflow.
        value_range: of the images.
    """
    xent = objective == "xent"
    return ThreatModel(
        norm=_NORMS[norm],
        epsilon=epsilon,
        step_size=step_sizes[norm],
        steps=steps,
        objective="cross_entropy" if xent else "carlini_wagner",
        rival="others" if xent else "not_below_zero",
        floor=floor if xent else 0.0,
        value_range=value_range,
    )


def objective_of(threat: ThreatModel | None) -> Objective:
    """Cross-entropy of the images, or of adversarial ones only (appendix B)."""
    objective = Objective((CrossEntropy(),))
    return objective if threat is None else objective + AdversarialTraining(threat)
