"""Whether measured increases of layers stay below what is proven, and below what is printed."""

from __future__ import annotations

import pandas as pd

from experiments.common.claims import judged
from tfrobust.report import Claim

__all__ = ["increases_are_proven", "increases_obey_printed_rules"]

# single precision of what is measured; how far below the proven norm it may end
ABOVE, BELOW = 1e-4, 0.05
SOURCE = "certified rules, layer by layer"


def increases_are_proven(table: pd.DataFrame) -> tuple[Claim, Claim]:
    """No measured increase exceeds what is proven, and those of linear layers come near.

    Args:
        table: one row per layer: measured, proven, linear.
    """
    share = table["measured"] / table["proven"]
    linear, high = share[table["linear"]], float(share.max())
    above = judged(
        "No change increases more than is proven",
        SOURCE,
        high <= 1 + ABOVE,
        f"largest measured / proven increase {high:.5f} over {len(share)} layers (held up to "
        f"{1 + ABOVE:g})",
    )
    statement = "Some change increases nearly as much as the proven norm"
    if not len(linear):
        return above, judged(statement, SOURCE, None, "no linear layer")
    low = float(linear.min())
    near = judged(
        statement,
        SOURCE,
        low >= 1 - BELOW,
        f"smallest measured increase / norm {low:.4f} over {len(linear)} linear layers (held from "
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
