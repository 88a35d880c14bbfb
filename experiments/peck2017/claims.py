"""What Peck 2017 claims, and what is known since, as functions of a run's results."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, spearmanr

from experiments.common.claims import judged
from experiments.peck2017.comparison import BOUNDS, attacked, violations
from tfrobust.report import Claim

__all__ = [
    "bounds_hold",
    "increases_are_proven",
    "increases_obey_printed_rules",
    "is_increasing",
    "is_larger",
    "scaling_divides_kappa",
]

# one-sided tests
LEVEL = 0.05
# of increases: single precision of what is measured; how far below the proven norm it may end
ABOVE, BELOW = 1e-4, 0.05


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


def is_larger(
    statement: str, base: pd.DataFrame, other: pd.DataFrame, column: str, source: str
) -> Claim:
    """Values of a column are larger in `other`: one-sided Mann-Whitney test at 5 %."""
    first, second = (frame[column].dropna().to_numpy() for frame in (base, other))
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if min(len(first), len(second)) < 5:
        return judged(statement, source, None, "fewer than five examples")
    p = float(mannwhitneyu(second, first, alternative="greater").pvalue)
    return judged(
        statement,
        source,
        p < LEVEL,
        f"median {np.median(first):.4g} -> {np.median(second):.4g}, one-sided Mann-Whitney "
        f"p = {p:.2g} (held if under {LEVEL:g}; images of one network, not networks)",
    )


def is_increasing(statement: str, networks: pd.DataFrame, source: str) -> Claim:
    """Means grow with a setting: Spearman's rank correlation above .5, over four settings or more.

    Args:
        statement, source: of the claim.
        networks: one row per network; first column: the setting, second: the quantity.
    """
    networks = networks.astype(float).set_axis(["x", "y"], axis=1)
    means = networks.groupby("x")["y"].mean()
    known = means[np.isfinite(means)]  # a setting at which no attack succeeds has no median
    missing = ", ".join(f"{x:g}" for x in means.index.difference(known.index))
    without = f"; without {missing}" if missing else ""
    if len(known) < 4:
        figure = f"{len(known)} settings with a median, four are needed{without}"
        return judged(statement, source, None, figure)
    single = networks[np.isfinite(networks["y"])]
    over_settings, over_networks = (
        float(spearmanr(x, y).statistic) for x, y in ((known.index, known), single.to_numpy().T)
    )
    return judged(
        statement,
        source,
        over_settings > 0.5,
        f"Spearman {over_settings:.2f} over {len(known)} settings (held above .5); "
        f"{over_networks:.2f} over {len(single)} single networks{without}",
    )


def scaling_divides_kappa(table: pd.DataFrame) -> Claim:
    """The printed rule on scaled networks is the closed form of the network as trained."""
    off = np.abs(table["printed ratio"] / table["closed form, printed"] - 1).max()
    return judged(
        "Scaling a kernel by s divides the printed rule's kappa by s",
        "Figure 5.12",
        off < 1e-3,
        f"scaled networks' kappas differ from 1 / (s ||W||) by {off:.2g} at most (held under .001)",
    )


def increases_are_proven(table: pd.DataFrame, rows: str, source: str) -> tuple[Claim, Claim]:
    """No measured increase exceeds what is proven, and those of linear layers come near.

    Args:
        table: columns measured and proven; linear, where not all are.
        rows: what a row is, in the plural.
        source: of the claims.
    """
    share = table["measured"] / table["proven"]
    linear, kind = (share[table["linear"]], "linear ") if "linear" in table else (share, "")
    high = float(share.max())
    above = judged(
        "No change increases more than is proven",
        source,
        high <= 1 + ABOVE,
        f"largest measured / proven increase {high:.5f} over {len(share)} {rows} (held up to "
        f"{1 + ABOVE:g})",
    )
    statement = "Some change increases nearly as much as the proven norm"
    if not len(linear):
        return above, judged(statement, source, None, "no linear layer")
    low = float(linear.min())
    near = judged(
        statement,
        source,
        low >= 1 - BELOW,
        f"smallest measured increase / norm {low:.4f} over {len(linear)} {kind}{rows} (held from "
        f"{1 - BELOW:g})",
    )
    return above, near


def increases_obey_printed_rules(layers: pd.DataFrame) -> Claim:
    """No measured increase exceeds the printed rule's, for layers with a rule of their own."""
    statement, source = "No change increases more than the printed rule says", "Theorems 5.1, 5.3"
    alone = layers[layers["alone"]]
    if not len(alone):
        return judged(statement, source, None, "no convolution or max pool")
    share = alone["measured"] / alone["printed"]
    over = share > 1 + ABOVE
    ratios = ", ".join(
        f"{name} {value:.3g}" for name, value in zip(alone["layer"], share, strict=True)
    )
    return judged(
        statement,
        source,
        not over.any(),
        f"measured increase / rule: {ratios} (held up to {1 + ABOVE:g})",
    )
