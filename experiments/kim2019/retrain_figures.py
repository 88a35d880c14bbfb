"""Figures 4 and 5 of Kim 2019, and the curves behind their scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.kim2019 import retrain_claims
from experiments.kim2019.published import MU_READ_OFF, STRENGTH, TEST_ACCURACY_READ_OFF
from tfrobust.report import figures

__all__ = ["curves", "scores"]


def scores(frame: pd.DataFrame, column: str, *, published: bool) -> Figure:
    """mu of every network, a panel per metric and objective.

    Args:
        frame: one row per network, metric and attribution.
        column: the horizontal axis, "strength" or "accuracy".
        published: draw the paper's points, which are of CIFAR-10.
    """
    panels: dict[str, list[tuple[str, str, pd.DataFrame]]] = {}
    for metric, family, attribution, rows in retrain_claims.series(frame):
        key = f"{metric} {family.split()[1]}"
        panels.setdefault(key, []).append((family.split()[0], attribution, rows))
    figure, axes = figures.new(1, max(len(panels), 1), width=4.2, height=3.2)
    for axis, (key, lines) in zip(axes[0], panels.items(), strict=False):
        for number, (norm, attribution, rows) in enumerate(lines):
            ordered = rows.sort_values(column)
            axis.errorbar(
                ordered[column],
                ordered["mu"],
                ordered["curve_error"],
                label=f"{norm} {attribution}",
                color=f"C{number}",
                marker="o",
                markersize=3,
                linewidth=1,
                capsize=2,
            )
            if published:
                _published(axis, key, f"{norm} {attribution}", column, f"C{number}")
        axis.axhline(0, color="0.6", linewidth=0.6)
        axis.set(title=key.upper().replace("XENT", "XEnt"), xlabel=column, ylabel="mu")
        axis.legend(fontsize=6, ncols=2)
    return figure


def _published(axis: Axes, panel: str, line: str, column: str, colour: str) -> None:
    """Points that were read off the paper's figures, faintly."""
    values = MU_READ_OFF.get(panel, {}).get(line)
    if values is None:
        return
    objective, norm = panel.split()[1], line.split()[0]
    x = STRENGTH if column == "strength" else TEST_ACCURACY_READ_OFF[objective][norm]
    points = sorted(zip(x, values, strict=True))
    axis.plot(*zip(*points, strict=True), color=colour, alpha=0.3, linewidth=0.8)


def curves(networks: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracies of retrained networks, a panel per metric and attribution."""
    frame = pd.concat(
        [each.assign(network=name) for name, each in networks.items()], ignore_index=True
    )
    random = frame[frame["attribution"] == "random"]
    groups = list(
        frame[frame["attribution"] != "random"].groupby(["method", "attribution"], sort=False)
    )
    figure, axes = figures.new(1, max(len(groups), 1), width=3.0, height=2.8)
    colours = colormaps["viridis"](np.linspace(0, 0.95, len(networks)))
    for axis, ((method, attribution), rows) in zip(axes[0], groups, strict=False):
        base = random.groupby("removed")["accuracy"].mean()
        axis.plot(base.index, base, color="0.5", linestyle="--", label="random")
        for colour, name in zip(colours, networks, strict=True):
            line = rows[rows["network"] == name].groupby("removed")["accuracy"].mean()
            axis.plot(line.index, line, color=colour, label=name, linewidth=1)
        axis.set(title=f"{method.upper()}, {attribution}", xlabel="share removed")
    axes[0, 0].set_ylabel("accuracy after retraining")
    axes[0, 0].legend(fontsize=6)
    return figure
