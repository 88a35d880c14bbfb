"""Rows of Tables 1 and 2 by name: "standard", "at-1.5", "jr", "ir-r-smg", "ir-r-smg-perm"."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from experiments.common.checks import Rule
from tfrobust import ThreatModel

__all__ = ["ATTACK", "ROW", "Attack", "Row", "as_number", "threat_model"]

Kind = Literal["standard", "random", "at", "jr", "ir"]
Method = Literal["simp", "smg"]

_NUMBER = r"\d*\.?\d+(?:/[1-9]\d*)?"
_AT = re.compile(rf"at-(linf-)?({_NUMBER})")
_IR = re.compile(rf"ir-(r|nr|random|at-(?:linf-)?{_NUMBER})-(simp|smg)(-perm)?")
_ATTACK = re.compile(rf"(l2|linf)-({_NUMBER})")


def as_number(text: str) -> float:
    """A decimal, or a fraction such as 80/255."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


@dataclasses.dataclass(frozen=True)
class Row:
    """How a network is trained.

    Attributes:
        name: as settings and folders have it.
        kind: standard or adversarial training, Jacobian or Interpretation Regularization, or an
            untrained network (target maps of section 4.1 only).
        norm, epsilon: of adversarial training's attack.
        teacher: of Interpretation Regularization: "r", the study's robust network, "nr", the
            standard one, or the name of any row.
        method: of its target maps.
        permuted: whether all values of a map are shuffled.
    """

    name: str
    kind: Kind
    norm: float = 2
    epsilon: float = 0.0
    teacher: str = ""
    method: Method = "simp"
    permuted: bool = False

    @classmethod
    def of(cls, name: str) -> Row:
        """The row of a name, as `ROW` accepts it."""
        if name in ("standard", "jr", "random"):
            return cls(name, name)
        if found := _AT.fullmatch(name):
            norm = math.inf if found[1] else 2
            return cls(name, "at", norm=norm, epsilon=as_number(found[2]))
        found = _IR.fullmatch(name)
        return cls(name, "ir", teacher=found[1], method=found[2], permuted=bool(found[3]))

    @property
    def label(self) -> str:
        """As the paper's tables have it."""
        if self.kind == "ir":
            known = {"r": "R", "nr": "NR"}.get(self.teacher, self.teacher)
            words = [known, *(["perm"] if self.permuted else []), self.method.replace("smg", "SmG")]
            return f"IR ({', '.join(words)})"
        if self.kind == "at":
            return f"AT ({'linf' if self.norm == math.inf else 'l2'}, {self.name.split('-')[-1]})"
        return {"jr": "JR", "standard": "Standard", "random": "Untrained"}[self.kind]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack of the evaluation, "l2-1.5" or "linf-4/255"."""

    name: str
    norm: float
    epsilon: float

    @classmethod
    def of(cls, name: str) -> Attack:
        """The attack of a name, as `ATTACK` accepts it."""
        norm, radius = _ATTACK.fullmatch(name).groups()
        return cls(name, math.inf if norm == "linf" else 2, as_number(radius))

    def threat(self, *, steps: int, step_size: float | None, floor: float) -> ThreatModel:
        """advertorch's attack: clip, then project; l2 from a uniform image, l-inf from the box.

        Args:
            steps: gradient steps.
            step_size: None for 2.5 * epsilon / steps.
            floor: of the gradient's norm; 0 for a direction that does not underflow.
        """
        return threat_model(self.norm, self.epsilon, steps=steps, step_size=step_size, floor=floor)


def threat_model(
    norm: float, epsilon: float, *, steps: int, step_size: float | None, floor: float
) -> ThreatModel:
    """advertorch's projected gradient descent on pixels in [0, 1]; see `Attack.threat`."""
    return ThreatModel(
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        random_start="image" if norm == 2 else "ball",
        floor=floor,
        order="clip_then_project",
    )


def _malformed_row(name: str) -> str | None:
    if name in ("standard", "jr") or _AT.fullmatch(name) or _IR.fullmatch(name):
        return _without_radius(name)
    return f'must be like "standard", "at-1.5", "jr", "ir-r-smg" or "ir-nr-simp", got {name!r}'


def _malformed_attack(name: str) -> str | None:
    if _ATTACK.fullmatch(name):
        return _without_radius(name)
    return f'must be like "l2-1.5" or "linf-4/255", got {name!r}'


def _without_radius(name: str) -> str | None:
    numbers = re.findall(_NUMBER, re.sub(r"l2|linf", "", name))
    wrong = any(as_number(number) <= 0 for number in numbers)
    return f"needs a positive radius, got {name!r}" if wrong else None


ROW = Rule(_malformed_row)
"""Of a setting: the name of a row."""
ATTACK = Rule(_malformed_attack)
"""Of a setting: the name of an attack."""
