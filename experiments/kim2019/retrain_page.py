"""The page of `retrain`: scores, correlations beside the published ones, Figures 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from experiments.common.experiment import Task
from experiments.common.page import Drawing, Report, Table
from experiments.kim2019 import retrain_claims, retrain_figures
from experiments.kim2019.adversaries import Adversary
from experiments.kim2019.published import ACCURACY, CORRELATION
from experiments.kim2019.study import ABOUT, SCALES
from tfrobust.retraining import correlation

__all__ = ["report"]


def report(
    task: Task,
    tested: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    strongest: Mapping[str, float],
) -> Report:
    """Tables, figures and claims of the networks that are finished.

    Args:
        task: of the experiment.
        tested: test accuracies by network.
        scores: mu by network.
        curves: accuracies of retrained networks by network.
        strongest: radius of strength 1 by norm.
    """
    frame = _joined(tested, scores, strongest)
    settings = task.settings
    return Report(
        title=f"Kim 2019: ROAR and KAR, {settings.dataset}",
        lead=f"{SCALES[task.preset]} {ABOUT} Retrained networks: {settings.retrains} per fraction "
        f"and attribution, {settings.random_retrains} for random pixels.",
        tables=_tables(settings.dataset, frame),
        drawings=_drawings(settings.dataset, frame, curves) if len(frame) else [],
        claims=retrain_claims.retraining(frame),
    )


def _joined(
    tested: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, pd.DataFrame],
    strongest: Mapping[str, float],
) -> pd.DataFrame:
    """One row per network, metric and attribution."""
    parts = []
    for name, frame in scores.items():
        adversary = Adversary.of(name)
        strength = adversary.epsilon / strongest[adversary.norm] if adversary.norm else 0.0
        parts.append(
            frame.assign(
                network=name,
                family=adversary.family,
                norm=adversary.norm,
                strength=strength,
                accuracy=tested[name]["accuracy"],
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _tables(dataset: str, frame: pd.DataFrame) -> list[Table]:
    if frame.empty:
        return []
    networks = frame.drop_duplicates("network")[["network", "strength", "accuracy"]].copy()
    published = ACCURACY.get(dataset, {})
    networks["accuracy"] *= 100
    networks = networks.assign(published=[published.get(n, np.nan) for n in networks["network"]])
    wide = frame.pivot(index="network", columns=["metric", "attribution"], values="mu")
    wide = wide.reindex(networks["network"])
    wide.columns = [f"{metric.upper()} {attribution}" for metric, attribution in wide.columns]
    noise = frame.groupby(["metric", "attribution"], sort=False)[
        ["curve_error", "standard_error"]
    ].mean()
    return [
        Table(
            "Networks",
            "Test accuracy in per cent. Strength: epsilon over 1.6 (l2) or .04 (linf).",
            networks,
        ),
        Table(
            "Scores",
            "mu: area over (ROAR) or under (KAR) the curve, minus the random baseline's. "
            "-direction: attributions that do not underflow.",
            wide.reset_index(),
        ),
        Table(
            "Noise",
            "Mean standard error of a score from the spread of retrained networks: its own part, "
            "and with that of the random baseline, which all scores share.",
            noise.reset_index(),
        ),
        Table(
            "Correlations",
            "Of mu with the attack's strength (Figure 4) and with test accuracy (Figure 5), with "
            "95 % bootstrap intervals; published: the legends' coefficients, of CIFAR-10.",
            _correlations(dataset, frame),
        ),
    ]


def _correlations(dataset: str, frame: pd.DataFrame) -> pd.DataFrame:
    known = CORRELATION if dataset == "cifar10" else {}
    rows = []
    for metric, family, attribution, points in retrain_claims.series(frame):
        norm, objective = family.split()
        for figure, column in (("figure 4", "strength"), ("figure 5", "accuracy")):
            published = known.get(figure, {}).get(f"{metric} {objective}", {})
            pearson, spearman = published.get(f"{norm} {attribution}", (np.nan, np.nan))
            row = {
                "figure": figure,
                "metric": metric,
                "series": f"{family} {attribution}",
                "networks": len(points),
                "Pearson": np.nan,
                "interval": "",
                "Pearson, published": pearson,
                "Spearman": np.nan,
                "Spearman, published": spearman,
            }
            if len(points) >= 3 and points[column].nunique() > 1 and points["mu"].nunique() > 1:
                found = correlation(points[column], points["mu"])
                low, high = found.pearson_interval
                row |= {
                    "Pearson": found.pearson,
                    "interval": f"{low:.2f} to {high:.2f}",
                    "Spearman": found.spearman,
                }
            rows.append(row)
    return pd.DataFrame(rows)


def _drawings(
    dataset: str, frame: pd.DataFrame, curves: Mapping[str, pd.DataFrame]
) -> list[Drawing]:
    drawings = []
    published = dataset == "cifar10"
    text = "; faint lines: published points, read off." if published else "."
    for number, column, about in (
        (4, "strength", "attack strength in training"),
        (5, "accuracy", "test accuracy"),
    ):
        drawings.append(
            Drawing(
                f"Figure {number}",
                f"mu against {about}; bars: standard error of retrains{text}",
                f"figure{number}",
                partial(retrain_figures.scores, frame, column, published=published),
            )
        )
    drawings.append(
        Drawing(
            "Curves",
            "Accuracy of retrained networks against the share of pixels that is removed; grey: "
            "random pixels.",
            "curves",
            partial(retrain_figures.curves, curves),
        )
    )
    return drawings
