"""The thesis's figures, drawn from `compare`'s results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from experiments.common.page import Drawing
from experiments.peck2017.comparison import ATTACKS, BOUNDS, attacked_by, nearest
from tfrobust.report import figures

__all__ = [
    "curves",
    "histograms",
    "histograms_of",
    "perturbations",
    "scatter",
    "scatter_of",
]

_COLOURS = {"printed": "#b5367a", "certified": "#31688e", "tightened": "#35b779"}
NO_SUCCESS = "no attack succeeded"


def _positive(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]


def histograms_of(frames: Mapping[str, pd.DataFrame], title: str, file: str) -> list[Drawing]:
    """A figure of each network's histograms."""
    return [
        Drawing(
            title.format(name),
            f"{name}: perturbations found and lower bounds.",
            file.format(name),
            partial(histograms, frame, name),
        )
        for name, frame in frames.items()
    ]


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


def histograms(frame: pd.DataFrame, title: str) -> Figure:
    """Histograms of every attack's distances and every bound, on one logarithmic axis."""
    figure, axes = figures.new(1, 2, width=4.2, height=2.9)
    bounds = [key for key in BOUNDS if key in frame]
    for axis, names, label, empty in (
        (axes[0, 0], attacked_by(frame), "l2 norm of perturbations found", NO_SUCCESS),
        (axes[0, 1], bounds, "lower bound on the l2 norm", "no bound is positive and finite"),
    ):
        shown = {key: _positive(frame[key].to_numpy()) for key in names}
        for key, values in shown.items():
            if len(values):
                bins = np.geomspace(values.min() / 1.01, values.max() * 1.01, 31)
                style = {"color": _COLOURS.get(key), "label": {**ATTACKS, **BOUNDS}[key]}
                axis.hist(values, bins=bins, alpha=0.6, **style)
        axis.set(xlabel=label, ylabel="examples")
        _log_axis(axis, "x", empty, *shown.values())
    handles = [
        pair for axis in axes[0] for pair in zip(*axis.get_legend_handles_labels(), strict=True)
    ]
    if handles:
        figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=len(handles))
    figure.suptitle(title, fontsize=10)
    return figure


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
    decades = 10.0 ** np.arange(-12, 13)
    if ((decades >= low) & (decades <= high)).sum() < 2:
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
) -> Figure:
    """Several quantities over one setting; `names` stand for its values where they are given."""
    figure, axes = figures.new(1, 1, width=5.2, height=3.4)
    axis = axes[0, 0]
    for label, values in lines.items():
        style = "--" if label in dashed else "-"
        axis.plot(x, values, style, marker="o", markersize=4, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if names is not None:
        axis.set_xticks(x, names, rotation=30, ha="right")
    else:
        linear_below = min((value for value in x if value > 0), default=1.0)
        near_zero = {} if min(x) > 0 else {"linthresh": linear_below}
        axis.set_xscale("log" if min(x) > 0 else "symlog", **near_zero)
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
    if log:
        positive = all(not value <= 0 for values in lines.values() for value in values)
        axis.set_yscale("log" if positive else "linear")
    if len(lines) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def perturbations(images: np.ndarray, changes: np.ndarray) -> Figure:
    """Images, their smallest perturbations, and both together."""
    rows = [("image", images), ("perturbation", changes), ("sum", images + changes)]
    return figures.image_grid(rows)
