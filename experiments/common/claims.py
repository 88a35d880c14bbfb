"""Claims of a paper: functions of an experiment's results that return a `Claim`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tfrobust.report import Claim

__all__ = ["judged", "undecided"]


def judged(statement: str, source: str, held: bool | None, figure: str) -> Claim:
    """A claim that held or not, by the numbers in `figure`; where None it was not tested."""
    verdict = "not tested" if held is None else "held" if held else "not held"
    return Claim(statement, verdict, figure, source)


def undecided(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims of an experiment that is not finished: what was tested is not decided yet."""
    return tuple(
        claim
        if claim.verdict == "not tested"
        else dataclasses.replace(claim, verdict="not decided", figure=f"so far: {claim.figure}")
        for claim in claims
    )
