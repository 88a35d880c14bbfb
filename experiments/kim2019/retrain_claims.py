"""What Kim 2019 claims of ROAR and KAR, as functions of scores with their noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from experiments.common.claims import judged
from tfrobust.report import Claim

__all__ = ["retraining"]

LEVEL = 0.05
# two standard errors of a normal distribution, one-sided at 5 %
_Z = float(stats.norm.ppf(1 - LEVEL))
ATTRIBUTIONS = {"G": "gradient", "GX": "gradient * input"}


def retraining(scores: pd.DataFrame) -> list[Claim]:
    """Sections 3.2 and 3.3.

    Args:
        scores: one row per network, metric and attribution: family, norm, strength, accuracy,
            metric, attribution, mu, curve_error. The standard network is in family "standard".
    """
    if scores.empty or (scores["family"] == "standard").all():
        return []
    return [
        *_trends(
            scores, "strength", "grows with the attack's strength", 1, "Section 3.2, Figure 4"
        ),
        *_gradient_times_input(scores),
        *_formal_criterion(scores),
        *_trends(scores, "accuracy", "falls with test accuracy", -1, "Section 3.3, Figure 5"),
        *_norms(scores),
    ]


def series(scores: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Every metric, family of attacks and attribution, with the standard network as strength 0."""
    families = [name for name in scores["family"].unique() if name != "standard"]
    for (metric, attribution), rows in scores.groupby(["metric", "attribution"], sort=False):
        for family in families:
            chosen = rows[rows["family"].isin([family, "standard"])]
            if (chosen["family"] == family).any():
                yield metric, family, attribution, chosen.sort_values("strength")


def _trends(scores: pd.DataFrame, column: str, words: str, sign: int, source: str) -> list[Claim]:
    """mu against a column: the slope of a straight line, one-sided t-tests at 5 %.

    The paper's one exception, the gradient of l2-trained networks in KAR, is a claim of its own.
    """
    claims = []
    for metric, family, attribution, rows in series(scores):
        is_gradient = attribution.split("-")[0] == "G"
        exception = metric == "kar" and is_gradient and family.startswith("l2")
        statement = f"mu {words}: {metric.upper()}, {attribution}, {family}"
        if exception:
            statement += " (the paper's exception: it does not)"
        x, y = rows[column].to_numpy(), rows["mu"].to_numpy()
        if len(x) < 3 or np.ptp(x) == 0:
            claims.append(judged(statement, source, None, f"{len(x)} networks"))
            continue
        line = stats.linregress(x, y)
        rank = stats.spearmanr(x, y).statistic
        p = _one_sided(line.slope, line.stderr, len(x) - 2, sign)
        figure = (
            f"slope {line.slope:.3g} +- {line.stderr:.2g}, Pearson {line.rvalue:.2f}, Spearman "
            f"{rank:.2f} over {len(x)} networks; retrains' own noise of mu "
            f"{rows['curve_error'].mean():.2g}"
        )
        verdict = "held" if p < LEVEL else "not held" if p > 1 - LEVEL else "not decided"
        if exception and verdict != "not decided":
            verdict = "held" if verdict == "not held" else "not held"
        claims.append(Claim(statement, verdict, figure, source))
    return claims


def _one_sided(slope: float, error: float, freedom: int, sign: int) -> float:
    """p of a slope of this sign."""
    if error == 0:
        return 0.0 if sign * slope > 0 else 1.0
    return float(stats.t.sf(sign * slope / error, freedom))


def _gradient_times_input(scores: pd.DataFrame) -> list[Claim]:
    """Gradient * Input performs better than the gradient."""
    claims = []
    for metric, rows in scores.groupby("metric", sort=False):
        table = rows.pivot(index="network", columns="attribution", values="mu")
        if not {"G", "GX"} <= set(table):
            continue
        gain = (table["GX"] - table["G"]).dropna()
        statement = f"Gradient * Input scores higher than the gradient: {metric.upper()}"
        source = "Section 3.2, Figure 4"
        if len(gain) < 3:
            claims.append(judged(statement, source, None, f"{len(gain)} networks"))
            continue
        p = stats.ttest_1samp(gain, 0, alternative="greater").pvalue
        verdict = "held" if p < LEVEL else "not held" if p > 1 - LEVEL else "not decided"
        figure = (
            f"mean difference {gain.mean():.4f}, positive for {int((gain > 0).sum())} of "
            f"{len(gain)} networks, one-sided t-test p = {p:.2g}"
        )
        claims.append(Claim(statement, verdict, figure, source))
    return claims


def _formal_criterion(scores: pd.DataFrame) -> list[Claim]:
    """min over trained networks of mu > max over standard ones (Section 3.2)."""
    claims = []
    for metric, family, attribution, rows in series(scores):
        standard, trained = rows[rows["family"] == "standard"], rows[rows["family"] == family]
        statement = (
            f"min mu of trained > max mu of standard: {metric.upper()}, {attribution}, {family}"
        )
        source = "Section 3.2, the formal criterion"
        if standard.empty:
            claims.append(judged(statement, source, None, "no standard network"))
            continue
        low, high = trained.loc[trained["mu"].idxmin()], standard.loc[standard["mu"].idxmax()]
        gap = low["mu"] - high["mu"]
        noise = math.hypot(low["curve_error"], high["curve_error"])
        figure = (
            f"least {low['mu']:.4f} ({low['network']}) against {high['mu']:.4f}, difference "
            f"{gap:.4f} with noise {noise:.2g} of retrains"
        )
        if not math.isfinite(noise) or abs(gap) < _Z * noise:
            claims.append(Claim(statement, "not decided", figure, source))
        else:
            claims.append(judged(statement, source, bool(gap > 0), figure))
    return claims


def _norms(scores: pd.DataFrame) -> list[Claim]:
    """At equal accuracy, l2 training scores higher in ROAR, l-infinity training in KAR.

    mu = a + b accuracy + c [l2] by least squares; the sign of c, one-sided t-test at 5 %.
    """
    claims = []
    for (metric, attribution), rows in scores.groupby(["metric", "attribution"], sort=False):
        better = "l2" if metric == "roar" else "linf"
        statement = f"At equal accuracy {better} training scores higher: {metric.upper()}, "
        statement += attribution
        source = "Section 3.3, Figure 5"
        trained = rows[rows["family"] != "standard"]
        if len(trained) < 5 or trained["norm"].nunique() < 2:
            claims.append(judged(statement, source, None, f"{len(trained)} trained networks"))
            continue
        first = (trained["norm"] == better).to_numpy(float)
        design = np.column_stack([np.ones(len(trained)), trained["accuracy"], first])
        values = trained["mu"].to_numpy()
        solution, *_ = np.linalg.lstsq(design, values, rcond=None)
        freedom = len(values) - 3
        variance = np.sum((values - design @ solution) ** 2) / freedom
        error = math.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2])
        p = _one_sided(solution[2], error, freedom, 1)
        verdict = "held" if p < LEVEL else "not held" if p > 1 - LEVEL else "not decided"
        figure = f"difference {solution[2]:.4f} +- {error:.2g} over {len(values)} networks"
        claims.append(Claim(statement, verdict, figure, source))
    return claims
