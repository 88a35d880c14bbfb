"""What Peck 2017 claims, and what is known since, as functions of a run's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, spearmanr

from experiments.peck2017.comparison import BOUNDS, attacked, violations
from tfrobust.report import Claim

__all__ = ["bounds_hold", "grows", "raises"]

# one-sided tests
LEVEL = 0.05


def bounds_hold(frames: Mapping[str, pd.DataFrame], source: str) -> tuple[Claim, ...]:
    """No attack comes closer than a bound: for the printed rules, and for both certified ones.

    An example that no attack changed tests nothing and is not counted.
    """
    judged = []
    for bound, words in BOUNDS.items():
        having = {name: frame for name, frame in frames.items() if bound in frame}
        broken = {name: violations(frame, bound) for name, frame in having.items()}
        count = sum(attacked(frame) for frame in having.values())
        examples = sum(len(frame) for frame in having.values())
        total = sum(broken.values())
        where = ", ".join(f"{name} {n}" for name, n in broken.items() if n)
        judged.append(
            Claim(
                statement=f"No attack comes closer than the {words}",
                verdict="not tested" if not count else "not held" if total else "held",
                figure=f"{total} violations in {count} attacked examples (of {examples})"
                + (f": {where}" if where else ""),
                source=source if bound == "printed" else "certified rules",
            )
        )
    return tuple(judged)


def raises(
    statement: str, base: pd.DataFrame, other: pd.DataFrame, column: str, source: str
) -> Claim:
    """Values of a column are larger in `other`: one-sided Mann-Whitney test at 5 %."""
    first, second = (frame[column].dropna().to_numpy() for frame in (base, other))
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if min(len(first), len(second)) < 5:
        return Claim(statement, "not tested", "fewer than five examples", source)
    p = float(mannwhitneyu(second, first, alternative="greater").pvalue)
    return Claim(
        statement,
        "held" if p < LEVEL else "not held",
        f"median {np.median(first):.4g} -> {np.median(second):.4g}, one-sided Mann-Whitney "
        f"p = {p:.2g} (held if under {LEVEL:g}; images of one network, not networks)",
        source,
    )


def grows(
    statement: str,
    x: Sequence[float],
    y: Sequence[float],
    source: str,
    *,
    networks: pd.DataFrame | None = None,
) -> Claim:
    """y grows with x: Spearman's rank correlation above .5, over at least four settings.

    Args:
        x, y: a setting each; y is the mean over its networks.
        networks: columns x and y of the single networks, which show how far seeds spread.
    """
    seeds = ""
    if networks is not None:
        each = networks.replace([np.inf, -np.inf], np.nan).dropna()
        if each["x"].nunique() > 1:
            one_by_one = float(spearmanr(each["x"], each["y"]).statistic)
            seeds = f"; {one_by_one:.2f} over {len(each)} single networks"
    known = np.isfinite(y)  # a setting at which no attack succeeds has no median
    without = f"; without {', '.join(f'{v:g}' for v in np.asarray(x)[~known])}" * (not known.all())
    x, y = np.asarray(x)[known], np.asarray(y)[known]
    if len(x) < 4:
        words = f"{len(x)} settings with a median, four are needed{without}"
        return Claim(statement, "not tested", words, source)
    value = float(spearmanr(x, y).statistic)
    return Claim(
        statement,
        "held" if value > 0.5 else "not held",
        f"Spearman {value:.2f} over {len(x)} settings (held above .5){seeds}{without}",
        source,
    )
