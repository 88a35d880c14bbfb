"""The thesis's figures, drawn from `compare`'s results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from experiments.common.page import Drawing
from experiments.peck2017.comparison import BOUNDS, nearest
from tfrobust.report import figures

__all__ = ["boxplots", "curves", "gallery", "heatmaps", "panels", "scatter", "scatter_of"]

NO_SUCCESS = "no attack succeeded"
_COLOURS = {"printed": "C3", "certified": "C0", "tightened": "C2"}


def boxplots(values: Mapping[str, np.ndarray], *, ylabel: str, xlabel: str = "") -> Figure:
    """One box per name: quartiles, whiskers to 1.5 times their distance, and what lies beyond."""
    figure, axes = figures.new(1, 1, width=max(3.2, 0.9 * len(values) + 1.4), height=3.2)
    axis = axes[0, 0]
    shown = [np.asarray(each, np.float64) for each in values.values()]
    flier = {"marker": "o", "markersize": 2.5, "markerfacecolor": "0.4", "markeredgewidth": 0}
    axis.boxplot(shown, flierprops=flier, medianprops={"color": "C3"}, widths=0.6)
    axis.set_xticks(range(1, len(values) + 1), list(values))
    axis.set(ylabel=ylabel, xlabel=xlabel)
    for place, each in enumerate(shown, start=1):
        if not len(each):
            axis.text(place, 0.5, NO_SUCCESS, rotation=90, ha="center", va="center", fontsize=7)
    return figure


def heatmaps(counts: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> Figure:
    """Figure 5.10: how many images of each class before (row) have each class after (column).

    Args:
        counts: by network, (classes, classes).
        names: of the classes, by network.
    """
    figure, axes = figures.new(1, len(counts), width=4.2, height=3.9)
    for axis, (title, table) in zip(axes[0], counts.items(), strict=True):
        axis.imshow(np.sqrt(table), cmap="Blues")  # a root: one class takes most
        ticks = range(len(table))
        axis.set_xticks(ticks, names[title], rotation=45, ha="right")
        axis.set_yticks(ticks, names[title])
        axis.set(title=title, xlabel="class after", ylabel="class before")
        largest = max(table.max(), 1)
        for row, column in zip(*np.nonzero(table), strict=True):
            colour = "white" if table[row, column] > 0.4 * largest else "0.2"
            text = f"{table[row, column]}"
            axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    return figure


def gallery(
    images: np.ndarray,
    changes: np.ndarray,
    titles: Sequence[str],
    value_range: tuple[float, float],
) -> Figure:
    """Figures 5.8 and 5.9: images over what they became, with classes and epsilon.

    Args:
        images: (count, height, width, channels).
        changes: their perturbations.
        titles: "cat -> dog, epsilon 1.32" for instance, one per image.
        value_range: of the pixels; the sum is clipped to it where it is drawn.
    """
    low, high = value_range
    figure, axes = figures.new(2, len(images), width=1.25, height=1.55)
    for column, (image, change, title) in enumerate(zip(images, changes, titles, strict=True)):
        for row, shown in enumerate((image, image + change)):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            unit = np.clip((shown - low) / (high - low), 0, 1)
            axis.imshow(
                unit.squeeze() if unit.shape[-1] == 1 else unit, cmap="gray", vmin=0, vmax=1
            )
        axes[1, column].set_xlabel(title, fontsize=7)
    return figure


def panels(
    x: Sequence[float],
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """One panel per name, each with several quantities over the same setting, from 0 on."""
    figure, axes = figures.new(1, len(lines), width=2.9, height=2.9)
    for axis, (title, quantities) in zip(axes[0], lines.items(), strict=True):
        for label, values in quantities.items():
            axis.plot(x, values, marker="o", markersize=3.5, label=label)
        smallest = min((value for value in x if value > 0), default=1.0)
        axis.set_xscale("symlog", linthresh=smallest)
        axis.set_xticks(x, [f"{value:g}" for value in x], rotation=45)
        axis.minorticks_off()
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=limits)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(lines)
    )
    return figure


def scatter_of(
    frames: Mapping[str, pd.DataFrame], title: str, file: str, text: str = ""
) -> list[Drawing]:
    """The figure of bounds against attacks for up to four networks; none without a network."""
    first = dict(list(frames.items())[:4])
    explanation = (
        "Each example's bounds against the smallest distance found; above the dashed line a bound "
        f"is violated. {text}"
    )
    return [Drawing(title, explanation, file, partial(scatter, first))] if frames else []


def scatter(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Each example's bounds against the smallest distance found; above the line is a violation."""
    figure, axes = figures.new(1, len(frames), width=3.4, height=3.2)
    for axis, (title, frame) in zip(axes[0], frames.items(), strict=True):
        distance = nearest(frame)
        shown = []
        for key in (key for key in BOUNDS if key in frame):
            bound = frame[key].to_numpy()
            use = np.isfinite(distance) & (distance > 0) & (bound > 0) & np.isfinite(bound)
            shown.append(bound[use])
            style = {"color": _COLOURS[key], "label": BOUNDS[key]}
            axis.scatter(distance[use], bound[use], s=5, alpha=0.5, linewidths=0, **style)
        span = _positive(distance)
        if len(span):
            ends = [span.min(), span.max()]
            axis.plot(ends, ends, color="0.3", linewidth=0.8, linestyle="--")
            shown.append(span)
        axis.set(xlabel="smallest l2 distance found", ylabel="bound", title=title)
        _log_axis(axis, "x", NO_SUCCESS, span)
        if len(span):
            _log_axis(axis, "y", NO_SUCCESS, *shown)
    lines = axes[0, 0].get_legend_handles_labels()
    columns = 1 if len(frames) == 1 else 3
    figure.legend(*lines, loc="outside lower center", ncols=columns, markerscale=2.5)
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]


def _log_axis(axis: Axes, which: str, empty: str, *values: np.ndarray) -> None:
    """A logarithmic axis with few, short tick labels; the words `empty` where nothing is shown."""
    shown = np.concatenate([np.empty(0), *values])
    if not len(shown):
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, empty, transform=axis.transAxes, ha="center", va="center", color="0.3")
        return
    axis.set(**{f"{which}scale": "log"})
    low, high = shown.min(), shown.max()
    one = axis.xaxis if which == "x" else axis.yaxis
    one.set_minor_formatter(NullFormatter())  # Matplotlib's own overlap
    decades = 10.0 ** np.arange(-30, 13)
    inside = decades[(decades >= low) & (decades <= high)]
    if len(inside) < 2:
        ticks = np.outer(decades, (1, 2, 5)).ravel()
        if ((ticks >= low) & (ticks <= high)).sum() < 2:
            ticks = MaxNLocator(3).tick_values(low, high) if high > low else np.array([low])
        one.set_major_locator(FixedLocator(ticks[ticks > 0]))
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = True,
    dashed: Sequence[str] = (),
    names: Sequence[str] | None = None,
    **options: Any,
) -> Figure:
    """Several quantities over one setting; `names` stand for its values where they are given."""
    figure, axes = figures.new(1, 1, width=5.2, height=3.4)
    axis = axes[0, 0]
    for label, values in lines.items():
        style = "--" if label in dashed else "-"
        axis.plot(x[: len(values)], values, style, marker="o", markersize=4, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, **options)
    if names is not None:
        axis.set_xticks(x, names, rotation=30, ha="right")
    if log:
        positive = all(not value <= 0 for values in lines.values() for value in values)
        axis.set_yscale("log" if positive else "linear")
    if len(lines) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    return figure
