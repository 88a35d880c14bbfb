"""Plots shared by experiments, in one style; every figure is saved as PNG and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from tfrobust.arguments import as_range
from tfrobust.errors import InputError
from tfrobust.files import atomic_path

if TYPE_CHECKING:
    from tfrobust.attacks import IteratedPerturbation

__all__ = [
    "image_grid",
    "iterated_perturbation",
    "new",
    "pointwise",
    "save",
    "side_by_side",
    "style",
    "trail",
]

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
COLORS = "viridis"
FORMATS = ("pdf", "png")


def style() -> AbstractContextManager[None]:
    """Figures drawn and saved in this block have the common style."""
    return mpl.rc_context(STYLE)


def new(
    rows: int = 1, columns: int = 1, *, width: float = 3.4, height: float = 2.9
) -> tuple[Figure, np.ndarray]:
    """A figure and an array (rows, columns) of axes, each `width` by `height` inches."""
    with style():
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def side_by_side(
    names: Sequence[str], *, width: float, height: float
) -> tuple[Figure, list[Figure | SubFigure]]:
    """A figure and its subfigures from left to right, each with its name as title.

    Args:
        names: of the subfigures; with one name the figure itself is returned, without a title.
        width: per subfigure, in inches.
        height: per subfigure, in inches.
    """
    with style():
        single = len(names) == 1
        size = (width * len(names), height + (0 if single else 0.3))
        figure = Figure(figsize=size, layout="constrained")
        if single:
            return figure, [figure]
        parts = list(figure.subfigures(1, len(names), wspace=0.05))
        for part, name in zip(parts, names, strict=True):
            part.suptitle(name, fontsize=11, fontweight="bold")
        return figure, parts


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write `name`.png and `name`.pdf into `folder`; returns the path of the PNG.

    Raises:
        OSError: a file could not be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        for suffix in FORMATS:
            path = folder / f"{name}.{suffix}"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=150)
    return path


def trail(
    figure: Figure,
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    weights: Sequence[float],
    label: str | None = None,
) -> None:
    """One point per model, joined in the order of the weights and coloured by their logarithm.

    Args:
        figure: gets a colour bar if `label` is given.
        axes: to draw into.
        x: (models,).
        y: (models,).
        weights: (models,), positive.
        label: of the colour bar.
    """
    order = np.argsort(weights)
    x, y = np.asarray(x, float)[order], np.asarray(y, float)[order]
    axes.plot(x, y, color="0.75", linewidth=1, zorder=1)
    norm = mpl.colors.LogNorm(min(weights), max(weights)) if len(set(weights)) > 1 else None
    points = axes.scatter(
        x, y, c=np.asarray(weights, float)[order], norm=norm, cmap=COLORS, s=32, zorder=2
    )
    if label is not None and norm is not None:
        figure.colorbar(points, ax=axes, label=label)


def pointwise(
    axes: Axes, x: np.ndarray, y: np.ndarray, *, diagonal: bool = False, title: str | None = None
) -> None:
    """One point per example, with Spearman's rank correlation in the title.

    Args:
        axes: to draw into.
        x: (examples,); NaN and infinite values are left out.
        y: (examples,).
        diagonal: draw y = x.
        title: before the correlation.
    """
    from scipy.stats import spearmanr

    keep = np.isfinite(x) & np.isfinite(y)
    axes.scatter(x[keep], y[keep], s=5, alpha=0.4, linewidths=0, color="#31688e")
    correlation = spearmanr(x[keep], y[keep]).statistic if keep.sum() > 2 else float("nan")
    statistic = f"Spearman {correlation:.2f}, n = {keep.sum()}"
    axes.set_title(f"{title}\n{statistic}" if title else statistic)
    if diagonal and keep.any():
        end = min(x[keep].max(), y[keep].max())
        axes.plot([0, end], [0, end], color="0.3", linewidth=0.8, linestyle="--")


def image_grid(
    rows: Sequence[tuple[str, np.ndarray]],
    *,
    size: float = 0.9,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Rows of images, each named on its left; rows with negative values are saliency maps.

    Saliency maps are summed over channels and shown on a diverging scale, symmetric about zero and
    fitted to each map; images are shown on [0, 1], in colour where they have three channels.

    Args:
        rows: pairs of a name and images (count, height, width, channels); shorter rows end in empty
            axes.
        size: per image, in inches.
        figure: to draw into, without changing its size; None for a new one.
    """
    count = max(len(images) for _, images in rows)
    with style():
        if figure is None:
            figure, axes = new(len(rows), count, width=size, height=size)
        else:
            axes = figure.subplots(len(rows), count, squeeze=False)
        for line, (name, images) in zip(axes, rows, strict=True):
            signed = (np.asarray(images) < 0).any()
            for axis in line:
                _bare(axis)
            for axis, image in zip(line, images, strict=False):
                _show(axis, image, signed)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def iterated_perturbation(
    result: IteratedPerturbation,
    path: str | Path,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    class_names: Sequence[str] | None = None,
    most: int = 8,
    perturbations: bool = False,
    size: float = 1.0,
) -> Path:
    """One row per example: the images of the steps, each under its class and distance.

    The last column is the total perturbation, the last image minus the first, summed over channels,
    on its own diverging scale. Where the attack failed at a step, "none found" replaces the
    distance, which is unchanged. With `perturbations` each example has a second row, as in Peck
    2017, Figure 2.5: what was added to the image before to obtain the one above it, and under the
    first image the total, each on its own scale.

    Args:
        result: of `tfrobust.attacks.iterate`, of images (height, width, channels).
        path: of the PNG, with or without its suffix; a PDF is written beside it.
        value_range: least and largest valid pixel.
        class_names: (classes,); None for indices.
        most: largest number of steps shown, evenly spaced from the first to the last.
        perturbations: draw a second row per example instead of the last column.
        size: per image, in inches.

    Returns:
        The path of the PNG.

    Raises:
        InputError: the images have no height, width and channels, `most` is less than 1,
            `value_range` is not a range, a class has no name, or the path has another suffix.
        OSError: a file could not be written.
    """
    if result.images.ndim != 5:
        raise InputError(
            "only images (height, width, channels) can be drawn, got examples of shape "
            f"{result.images.shape[2:]}"
        )
    if most < 1:
        raise InputError(f"most must be at least 1, got {most}")
    low, high = as_range(value_range)
    largest = int(result.labels.max())
    if class_names is not None and len(class_names) <= largest:
        raise InputError(
            f"class_names must name every class, got {len(class_names)} names and class {largest}"
        )
    path = Path(path)
    if path.suffix not in ("", ".png", ".pdf"):
        raise InputError(f"path must end in .png or in nothing, got {path.name!r}")
    last = result.images.shape[1] - 1
    steps = np.unique(np.round(np.linspace(0, last, min(most, last) + 1)).astype(int))
    shown = (result.images - low) / (high - low)
    with style():
        count, columns = (2, len(steps)) if perturbations else (1, len(steps) + 1)
        figure, grid = new(count * len(shown), columns, width=size, height=size + 0.35)
        axes = grid[::count]
        for axis in grid.flat:
            _bare(axis)
        for row, line in enumerate(axes):
            for axis, step in zip(line, steps, strict=False):
                label = result.labels[row, step]
                title = f"{label if class_names is None else class_names[label]}"
                failed = step and not result.success[row, step - 1]
                title += "\nnone found" if failed else f"\n{result.distance[row, step]:.3g}"
                axis.set_title(title, fontsize=8)
                _show(axis, shown[row, step], signed=False)
            total = shown[row, -1] - shown[row, 0]
            if perturbations:
                added = [total, *np.diff(shown[row, steps], axis=0)]
                for axis, change in zip(grid[2 * row + 1], added, strict=True):
                    _show(axis, change, signed=True)
                grid[2 * row + 1, 0].set_title("added in all", fontsize=8)
            else:
                _show(line[-1], total, signed=True)
                line[-1].set_title("added\nin all", fontsize=8)
        for axis, step in zip(grid[-1], steps, strict=False):
            axis.set_xlabel(f"step {step}", fontsize=8)
    return save(figure, path.parent, path.stem)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _show(axis: Axes, image: np.ndarray, signed: bool) -> None:
    """An image in [0, 1], or a saliency map about zero, (height, width, channels)."""
    if signed:
        flat = image.sum(axis=-1)
        # a few extreme pixels would leave the rest grey
        top = np.quantile(np.abs(flat), 0.995) or 1.0
        axis.imshow(flat, cmap="RdBu_r", vmin=-top, vmax=top)
    else:
        shown = image if image.shape[-1] == 3 else image[..., 0]
        axis.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1)
