"""Figures of Noack 2020."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from experiments.noack2020.rows import Row
from tfrobust.report import figures

__all__ = ["interval", "norms", "permutation", "target_maps", "trade_off"]


def interval(values: pd.Series) -> float:
    """Half the 95 % t-interval of a mean; NaN for one value."""
    count = len(values)
    if count < 2:
        return float("nan")
    return float(stats.sem(values) * stats.t.ppf(0.975, count - 1))


def norms(networks: pd.DataFrame) -> Figure:
    """Figure 4: mean norms of the Jacobian's rows, of the label's logit and of the others.

    Args:
        networks: one row per network: row, label, others.
    """
    rows = list(dict.fromkeys(networks["row"]))
    means = networks.groupby("row")[["label", "others"]].mean().loc[rows]
    errors = networks.groupby("row")[["label", "others"]].std().loc[rows].fillna(0)
    figure, axes = figures.new(1, 1, width=max(5.0, 0.75 * len(rows)), height=3.2)
    axis, places = axes[0, 0], np.arange(len(rows))
    for shift, column, label in ((-0.2, "label", "label's logit"), (0.2, "others", "other logits")):
        axis.bar(places + shift, means[column], 0.4, yerr=errors[column], label=label, capsize=2)
    axis.set_xticks(places, [Row.of(row).label for row in rows], rotation=40, ha="right")
    axis.set_ylabel("mean Frobenius norm")
    axis.legend()
    return figure


def target_maps(images: np.ndarray, maps: Mapping[str, np.ndarray]) -> Figure:
    """Figures 1 and 2: images, and below each its target maps.

    Args:
        images: (count, height, width, channels) in [0, 1].
        maps: by kind, (count, height, width, channels).
    """
    figure, axes = figures.new(len(maps) + 1, len(images), width=1.2, height=1.2)
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
    for line, values in zip(axes[1:], maps.values(), strict=True):
        for axis, each in zip(line, values, strict=True):
            top = float(np.abs(each).max()) or 1.0
            scaled = (each / top + 1) / 2
            shown = scaled if each.shape[-1] == 3 else scaled[..., 0]
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
    for line, name in zip(axes, ["image", *maps], strict=True):
        line[0].set_ylabel(name, fontsize=8)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
    return figure


def permutation(frame: pd.DataFrame) -> Figure:
    """Figure 3: means and 95 % t-intervals over networks, against the permutation probability.

    Args:
        frame: one row per network: probability, attacked and accuracy (per cent), label, cosine.
    """
    panels = {
        "attacked": "accuracy under attack, %",
        "label": "||J_c||",
        "cosine": "cosine with targets",
        "accuracy": "standard accuracy, %",
    }
    figure, axes = figures.new(1, len(panels), width=2.7, height=2.6)
    groups = frame.groupby("probability")
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        means = groups[column].mean()
        half = groups[column].apply(interval).fillna(0)
        axis.plot(means.index, means, marker="o", markersize=3)
        axis.fill_between(means.index, means - half, means + half, alpha=0.25)
        axis.set(xlabel="permutation probability", ylabel=label)
    return figure


def trade_off(frame: pd.DataFrame) -> Figure:
    """Accuracy under attack against standard accuracy, both on validation images."""
    figure, axes = figures.new(1, 1, width=4.5, height=3.4)
    axis = axes[0, 0]
    for number, (kind, rows) in enumerate(frame.groupby("kind", sort=False)):
        axis.scatter(
            rows["accuracy"], rows["attacked"], s=16, color=f"C{number}", label=kind.upper()
        )
        for _, row in rows.iterrows():
            axis.annotate(
                row["weights"],
                (row["accuracy"], row["attacked"]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=6,
            )
    axis.set(xlabel="standard accuracy, %", ylabel="accuracy under attack, %")
    axis.legend()
    return figure
