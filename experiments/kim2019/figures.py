"""Figures of Kim 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from tfrobust.report import figures

__all__ = ["adversarials", "boundaries", "densities", "gradients", "mode_of", "on_paper_axis"]

# points per class that are drawn
_DRAWN = 1500
# covariance factor of the kernel densities in Figure 1
FACTOR = 0.25


def boundaries(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Figure 3b: the data, then per network its two regions and attacks on one class.

    Args:
        panels: per network "points", "labels", "adversarials", "axis" and "lead".
    """
    figure, axes = figures.new(1, len(panels) + 1, width=2.7, height=2.8)
    data = next(iter(panels.values()))
    for axis, name in zip(axes[0], ["data", *panels], strict=True):
        for label, colour in ((0, "C0"), (1, "C1")):
            shown = data["points"][data["labels"] == label][:_DRAWN]
            axis.scatter(*shown.T, s=2, color=colour, label=f"class {label + 1}", rasterized=True)
        axis.set(title=name, xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].legend(loc="upper left", markerscale=3)
    for axis, panel in zip(axes[0, 1:], panels.values(), strict=True):
        axis.contourf(
            panel["axis"],
            panel["axis"],
            panel["lead"],
            levels=[-np.inf, 0, np.inf],
            colors=["C0", "C1"],
            alpha=0.15,
        )
        first = panel["labels"] == 0
        start, end = panel["points"][first], panel["adversarials"][first]
        axis.scatter(*end[:_DRAWN].T, s=2, color="C3", rasterized=True)
        arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", xy=end.mean(axis=0), xytext=start.mean(axis=0), arrowprops=arrow)
    return figure


def on_paper_axis(distances: Any, test_distances: Any) -> np.ndarray:
    """(d - min) / (max - min), minimum and maximum of the test images' distances."""
    low, high = np.min(test_distances), np.max(test_distances)
    return (np.asarray(distances, np.float64) - low) / (high - low)


def mode_of(values: np.ndarray) -> float:
    """Where the kernel density of Figure 1 is largest in [0, 1]; NaN for too few values."""
    density = _density(values)
    if density is None:
        return float("nan")
    axis = np.linspace(0, 1, 1001)
    return float(axis[np.argmax(density(axis))])


def densities(panels: Mapping[str, Mapping[str, np.ndarray]], test_images: np.ndarray) -> Figure:
    """Figure 1: kernel densities of distances to the manifold, a panel per norm and objective.

    Args:
        panels: distances by network, by family.
        test_images: distances of the unperturbed images.
    """
    figure, axes = figures.new(1, max(len(panels), 1), width=3.2, height=2.6)
    axis = np.linspace(0, 1, 501)
    for plot, (family, networks) in zip(axes[0], panels.items(), strict=False):
        for name, values in {"test images": test_images, **networks}.items():
            density = _density(on_paper_axis(values, test_images))
            if density is not None:
                plot.plot(axis, density(axis), label=f"{name} ({len(values)})")
        plot.set(title=family, xlabel="distance to the manifold, scaled", xlim=(0, 1))
        plot.set_ylim(bottom=0)
        plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    axes[0, 0].set_ylabel("density")
    return figure


def adversarials(
    image: np.ndarray, label: int, found: Mapping[str, tuple[np.ndarray, int]]
) -> Figure:
    """Figure 2: an image and its adversarials against several networks.

    Args:
        image: (height, width, channels) in [-1, 1].
        label: its class.
        found: per network the adversarial and the network's class of it.
    """
    figure, axes = figures.new(1, len(found) + 1, width=1.3, height=1.7)
    shown = {"original": (image, label), **found}
    for axis, (name, (picture, predicted)) in zip(axes[0], shown.items(), strict=True):
        pixels = (picture + 1) / 2 if picture.shape[-1] == 3 else (picture[..., 0] + 1) / 2
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"class {predicted}")
        axis.set_xlabel(name, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
    return figure


def gradients(images: np.ndarray, labels: np.ndarray, maps: Mapping[str, np.ndarray]) -> Figure:
    """Figure 6: images, and below each its gradient against several networks.

    Args:
        images: (count, height, width, channels) in [-1, 1].
        labels: (count,).
        maps: per network (count, height, width, channels).
    """
    figure, axes = figures.new(len(maps) + 1, len(images), width=1.4, height=1.4)
    for axis, image, label in zip(axes[0], images, labels, strict=True):
        pixels = (image + 1) / 2
        axis.imshow(pixels if image.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"class {label}")
    for line, gradient in zip(axes[1:], maps.values(), strict=True):
        for axis, each in zip(line, gradient.sum(axis=-1), strict=True):
            low, high = np.percentile(each, [0.5, 99.5])
            top = max(-low, high) or 1.0
            axis.imshow(np.clip(each, low, high), cmap="bwr", vmin=-top, vmax=top)
    for line, name in zip(axes, ["original", *maps], strict=True):
        line[0].set_ylabel(name, fontsize=8)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
    return figure


def _density(values: np.ndarray) -> gaussian_kde | None:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(np.unique(values)) < 3:
        return None
    return gaussian_kde(values, bw_method=FACTOR)
