"""What Peck 2017 claims of linear classifiers and MLPs (sections 3.3.1, 4.3.3 and 4.4)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.common.claims import judged
from experiments.peck2017 import claims, published
from experiments.peck2017.comparison import deviations
from tfrobust.report import Claim

__all__ = ["linear", "random_mlps", "regularised", "trained_mlps"]


def _by_network(frame: pd.DataFrame, statistic: str = "mean") -> np.ndarray:
    """Mean or deviation of each network's deviations: networks are independent, examples not."""
    deviation = frame["fast_gradient_sign"] - frame["printed"]
    return getattr(deviation.groupby(frame["network"]), statistic)().to_numpy()


def _ratio(table: str, first: str, second: str, column: str) -> float:
    return published.value(table, second, column) / published.value(table, first, column)


def linear(frames: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Section 3.3.1, and 3.3's "FGS is exact"; frames by the test's number."""
    source, found = "Section 3.3.1", []
    if frames:
        off = np.concatenate([deviations(frame) for frame in frames.values()])
        found.append(
            judged(
                "FGS is exact for linear classifiers: its perturbations are the minimal ones",
                "Section 3.3",
                bool(off.max() < 1e-3) if len(off) else None,
                f"largest deviation from Theorem 3.6's bound, which is the exact distance, "
                f"{off.max():.3g}, mean {off.mean():.3g}; the thesis's own means are .93 to 4.9"
                if len(off)
                else "no success",
            )
        )
    if not {"1", "2", "3", "4", "5"} <= set(frames):
        return found
    means = {name: _by_network(frame) for name, frame in frames.items()}
    spreads = {name: np.array([deviations(frame).std()]) for name, frame in frames.items()}
    similar = [
        claims.ratio_within(
            f"test {name} like test 1",
            source,
            means["1"],
            means[name],
            (0.7, 1.4),
            printed=_ratio("3.1", "1", name, "Mean"),
        )
        for name in ("3", "5")
    ]
    found.append(claims.all_of("Tests 1, 3 and 5 are highly similar", source, similar))
    found.append(
        claims.ratio_within(
            "Ten times the dimensions make the mean deviation about three times as large",
            source,
            means["1"],
            means["2"],
            (2.5, 4.5),
            printed=_ratio("3.1", "1", "2", "Mean"),
        )
    )
    found.append(
        claims.ratio_within(
            "Ten times the sample interval makes the mean deviation almost five times as large",
            source,
            means["1"],
            means["4"],
            (4.0, 5.5),
            printed=_ratio("3.1", "1", "4", "Mean"),
        )
    )
    for test, words, limits in (
        (
            "2",
            "The standard deviation stays about the same in ten times the dimensions",
            (0.8, 1.25),
        ),
        ("4", "It is almost four times as large for ten times the sample interval", (3.2, 4.8)),
    ):
        ratio = float(spreads[test][0] / spreads["1"][0])
        thesis = _ratio("3.1", "1", test, "Std")
        figure = (
            f"ratio {ratio:.3g} (held within {limits[0]:g} to {limits[1]:g}); the thesis's "
            f"{thesis:.3g}"
        )
        found.append(judged(words, source, limits[0] <= ratio <= limits[1], figure))
    return found


def random_mlps(frames: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Section 4.3.3 on random MLPs; frames by the test's number."""
    source = "Section 4.3.3"
    means = {name: _by_network(frame) for name, frame in frames.items()}
    found = []
    others = [name for name in means if name != "4"]
    if "4" in means and others:
        rest = np.concatenate([means[name] for name in others])
        found.append(
            claims.is_larger(
                "The bound is less tight in more dimensions: test 4 against the others",
                rest,
                means["4"],
                source,
            )
        )
    for test in ("2", "8"):
        if {"1", test} <= set(means):
            found.append(
                claims.is_larger(
                    f"A larger sampling interval (test {test}) raises the standard deviation",
                    _by_network(frames["1"], "std"),
                    _by_network(frames[test], "std"),
                    source,
                )
            )
    return found


def trained_mlps(
    frames: Mapping[str, pd.DataFrame], accuracies: Mapping[str, float]
) -> list[Claim]:
    """Sections 4.3.2 and 4.3.3 on trained MLPs; frames and test accuracies by data set."""
    found = []
    for dataset, accuracy in accuracies.items():
        known = float(published.PROSE["4.3.2", f"{dataset} accuracy"])
        found.append(
            judged(
                f"The {dataset} network's test accuracy is {known:.2%}",
                "Section 4.3.2",
                bool(accuracy >= known - 0.01),
                f"{accuracy:.2%}, mean over seeds (held from {known - 0.01:.2%})",
            )
        )
    order = [name for name in ("Iris", "Wine", "Spambase") if name in frames]
    parts = [
        claims.is_larger(f"{low} < {high}", deviations(frames[low]), deviations(frames[high]), "")
        for low, high in itertools.pairwise(order)
    ]
    statement = "The bound is less tight with more attributes: Iris 4, Wine 13, Spambase 57"
    found.append(claims.all_of(statement, "Section 4.3.3", parts))
    return found


def regularised(networks: pd.DataFrame) -> list[Claim]:
    """Section 4.4; one row per network: dataset, weight, accuracy, error."""
    source, found = "Section 4.4, Figure 4.3", []
    for dataset, rows in networks.groupby("dataset", sort=False):
        found += [
            claims.trend(
                f"Rewarding delta lowers the adversarial error rate on {dataset}",
                rows[["weight", "error"]],
                source,
                rises=False,
            ),
            claims.trend(
                f"It lowers the accuracy on {dataset}",
                rows[["weight", "accuracy"]],
                source,
                rises=False,
            ),
        ]
        if dataset == "spambase":
            least = float(rows.groupby("weight")["accuracy"].mean().min())
            found.append(
                judged(
                    "Spambase's accuracy can fall to about 60 %, its majority share",
                    source,
                    least < 0.65,
                    f"least mean accuracy {least:.1%} (held below 65 %)",
                )
            )
    return found
