"""Judging what Peck 2017 claims: bounds that hold, ratios, orders and trends with their noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, mannwhitneyu, permutation_test, rankdata

from experiments.common.claims import judged
from experiments.peck2017.comparison import BOUNDS, attacked, violations
from tfrobust.report import Claim

__all__ = ["all_of", "bounds_hold", "is_larger", "ratio_within", "trend"]

# one-sided tests; intervals
LEVEL, CONFIDENCE = 0.05, 0.95
_FEWEST = 5


def bounds_hold(frames: Mapping[str, pd.DataFrame], source: str) -> tuple[Claim, ...]:
    """No attack comes closer than a bound: for the printed rules, and for both certified ones.

    An example that no attack changed tests nothing and is not counted.
    """
    claims = []
    for bound, name in BOUNDS.items():
        having = {name: frame for name, frame in frames.items() if bound in frame}
        broken = {name: violations(frame, bound) for name, frame in having.items()}
        count = sum(attacked(frame) for frame in having.values())
        examples = sum(len(frame) for frame in having.values())
        total = sum(broken.values())
        where = ", ".join(f"{name} {n}" for name, n in broken.items() if n)
        claims.append(
            judged(
                f"No attack comes closer than the {name}",
                source if bound == "printed" else "certified rules",
                not total if count else None,
                f"{total} violations in {count} attacked examples (of {examples})"
                + (f": {where}" if where else ""),
            )
        )
    return tuple(claims)


def ratio_within(
    statement: str,
    source: str,
    first: Sequence[float],
    second: Sequence[float],
    limits: tuple[float, float],
    statistic: Callable[..., float] = np.mean,
    printed: float | None = None,
) -> Claim:
    """A statistic of the second sample over the first's lies within limits, beyond its noise.

    Held or not held where the bootstrap's 95 % interval lies inside or outside, else not decided.

    Args:
        statement, source: of the claim.
        first, second: independent values, one per network where examples of one are alike.
        limits: of the ratio; the words of the claim as numbers, which are in the figure.
        statistic: of a sample, with `axis`.
        printed: the thesis's own ratio.
    """
    one, two = (np.asarray(values, np.float64) for values in (first, second))
    one, two = one[np.isfinite(one)], two[np.isfinite(two)]
    if min(len(one), len(two)) < _FEWEST:
        return judged(statement, source, None, f"fewer than {_FEWEST} values")

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(b, axis=axis) / statistic(a, axis=axis)

    interval = bootstrap(
        (one, two),
        ratio,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = limits
    thesis = "" if printed is None else f"; the thesis's {printed:.3g}"
    figure = (
        f"ratio {float(ratio(one, two)):.3g}, 95 % interval {interval.low:.3g} to "
        f"{interval.high:.3g} (held within {low:g} to {high:g}){thesis}"
    )
    if interval.low >= low and interval.high <= high:
        return Claim(statement, "held", figure, source)
    outside = interval.high < low or interval.low > high
    return Claim(statement, "not held" if outside else "not decided", figure, source)


def is_larger(
    statement: str, first: Sequence[float], second: Sequence[float], source: str
) -> Claim:
    """Values of the second sample are larger: one-sided Mann-Whitney tests at 5 %.

    Not decided where neither direction is significant.
    """
    one, two = (np.asarray(values, np.float64) for values in (first, second))
    one, two = one[np.isfinite(one)], two[np.isfinite(two)]
    if min(len(one), len(two)) < _FEWEST:
        return judged(statement, source, None, f"fewer than {_FEWEST} values")
    larger, smaller = (
        float(mannwhitneyu(two, one, alternative=side).pvalue) for side in ("greater", "less")
    )
    verdict = "held" if larger < LEVEL else "not held" if smaller < LEVEL else "not decided"
    figure = (
        f"median {np.median(one):.4g} -> {np.median(two):.4g}, one-sided Mann-Whitney p = "
        f"{larger:.2g} (smaller: {smaller:.2g})"
    )
    return Claim(statement, verdict, figure, source)


def trend(statement: str, networks: pd.DataFrame, source: str, *, rises: bool = True) -> Claim:
    """A quantity rises, or falls, with a setting: a permutation test of Spearman's correlation.

    Over single networks, at 5 %; not decided where neither direction is significant.

    Args:
        statement, source: of the claim.
        networks: one row per network; first column: the setting, second: the quantity.
        rises: what is claimed.
    """
    networks = networks.astype(float).set_axis(["x", "y"], axis=1)
    known = networks[np.isfinite(networks["y"])]
    if known["x"].nunique() < 3 or known["y"].nunique() < 2:
        return judged(statement, source, None, "fewer than three settings with different values")
    x, y = (rankdata(known[column]) for column in ("x", "y"))
    p, against = (
        float(
            permutation_test(
                (x,),
                lambda order, axis: np.mean(order * y, axis=axis),
                permutation_type="pairings",
                vectorized=True,
                n_resamples=9999,
                alternative=side,
                rng=np.random.default_rng(0),
            ).pvalue
        )
        for side in (("greater", "less") if rises else ("less", "greater"))
    )
    means = known.groupby("x")["y"].mean()
    shown = ", ".join(f"{value:.3g} at {setting:g}" for setting, value in means.items())
    figure = (
        f"Spearman {float(np.corrcoef(x, y)[0, 1]):+.2f} over {len(known)} networks, p = {p:.2g} "
        f"(the other way {against:.2g}); means {shown}"
    )
    verdict = "held" if p < LEVEL else "not held" if against < LEVEL else "not decided"
    return Claim(statement, verdict, figure, source)


def all_of(statement: str, source: str, parts: Sequence[Claim]) -> Claim:
    """A claim of several parts: held if all are, not held if one is not, else not decided."""
    verdicts = [part.verdict for part in parts]
    figure = "; ".join(f"{part.statement}: {part.verdict}, {part.figure}" for part in parts)
    if not parts or "not tested" in verdicts:
        return Claim(statement, "not tested", figure or "nothing to compare", source)
    verdict = "not held" if "not held" in verdicts else "held"
    return Claim(
        statement,
        "not decided" if verdict == "held" and set(verdicts) != {"held"} else verdict,
        figure,
        source,
    )
