"""Figures of `tfrobust measure`, each as a section of its page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tfrobust import figures
from tfrobust.commands.measure.results import Measured
from tfrobust.commands.measure.settings import Resolved
from tfrobust.commands.subject import Subject
from tfrobust.errors import StorageError
from tfrobust.report import Section

__all__ = ["class_names", "draw"]

_COLUMNS = 8  # images in a row of saliency maps


def draw(
    folder: Path, settings: Resolved, subject: Subject, measured: Measured
) -> Iterator[Section]:
    """All figures as PNG and PDF into `folder`.

    Raises:
        OSError: a figure could not be written.
    """
    robustness = measured.table["linearized_robustness"].to_numpy()
    values = measured.table["alignment"].to_numpy()
    labels = "linearized robustness ρ~", "alignment α"
    with figures.style():
        figure, axes = figures.new(1, 3)
        figures.pointwise(axes[0, 0], robustness, values)
        _larger(axes[0, 0])
        axes[0, 0].set(xlabel=labels[0], ylabel=labels[1])
        for axis, label, column in zip(axes[0, 1:], labels, (robustness, values), strict=True):
            finite = column[np.isfinite(column)]
            axis.hist(finite, bins=int(np.clip(2 * np.sqrt(len(finite)), 5, 30)), color="#31688e")
            axis.set(xlabel=label, ylabel="images")
            axis.yaxis.get_major_locator().set_params(integer=True)
    yield Section(
        "Alignment and linearized robustness",
        "One point per image, and the distributions of both. Network units.",
        figure=figures.save(figure, folder, "alignment"),
    )
    if measured.attack is not None:
        yield _attack(folder, settings, subject, measured)
    if measured.saliency is not None:
        yield from _saliency(folder, settings, subject, measured)


def _larger(axes: Axes) -> None:
    """Larger points, for a few images; those of `pointwise` suit hundreds."""
    axes.collections[0].set(sizes=[20], alpha=0.7)


def _attack(folder: Path, settings: Resolved, subject: Subject, measured: Measured) -> Section:
    distance = measured.attack["distance"].to_numpy(float)
    successful = np.isfinite(distance) & (distance > 0)
    robustness = measured.table["linearized_robustness"].to_numpy()[: len(distance)]
    title = f"Attack: {settings.attack}"
    low, high = subject.preprocessing.value_range
    text = (
        f"Smallest l2 distance found on the first {len(distance)} images, where every channel may "
        f"take {low:.4g}..{high:.4g}, the range of the network's input over all channels. "
    )
    if not successful.any():
        return Section(title, f"{text}The attack changed no image's class (distance inf).")
    with figures.style():
        figure, axes = figures.new()
        figures.pointwise(axes[0, 0], robustness[successful], distance[successful], diagonal=True)
        _larger(axes[0, 0])
        axes[0, 0].set(xlabel="linearized robustness ρ~", ylabel=f"distance, {settings.attack}")
    medians = [np.median(values[successful]) for values in (distance, robustness)]
    return Section(
        title,
        f"{text}The attack changed the class of {successful.sum()} (others: distance inf), at a "
        f"median of {medians[0]:.4g} in network units, where the median of ρ~ is {medians[1]:.4g}. "
        "The dashed line is equality.",
        figure=figures.save(figure, folder, "attack"),
    )


def _saliency(
    folder: Path, settings: Resolved, subject: Subject, measured: Measured
) -> Iterator[Section]:
    rows, gradients = measured.saliency["rows"], measured.saliency["gradients"]
    names = class_names(settings, subject)
    for start in range(0, len(rows), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        with figures.style():
            figure = figures.image_grid(
                [("image", subject.pictures[rows[part]]), ("gradient", gradients[part])], size=1.3
            )
            for axis, row in zip(figure.axes, rows[part], strict=False):
                measures = measured.table.iloc[row]
                title = names[measures["predicted"]] if names else f"class {measures['predicted']}"
                axis.set_title(f"{title}\nρ~ {measures['linearized_robustness']:.3g}", fontsize=8)
        yield Section(
            "Saliency" if start == 0 else "Saliency, continued",
            f"{len(rows)} of {len(subject.x):,} images, spread evenly by rank from the least (left)"
            " to the most robust by ρ~, with the predicted class. Below, the gradient of its logit,"
            " summed over channels: blue negative, red positive, each map on its own scale.",
            figure=figures.save(figure, folder, f"saliency-{start // _COLUMNS + 1}"),
        )


def class_names(settings: Resolved, subject: Subject) -> list[str] | None:
    """ImageNet's class names, if the classes are ImageNet's and Keras has the names on disk.

    Raises:
        OSError: the file cannot be read.
    """
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    path = home / "models" / "imagenet_class_index.json"
    trained = settings.weights not in (None, "none") and subject.classes == 1000
    if not trained or not path.is_file():
        return None
    try:
        index = json.loads(path.read_text())
        return [index[str(k)][1].replace("_", " ") for k in range(subject.classes)]
    except (ValueError, LookupError) as error:
        raise StorageError(
            f"the class names in {path} cannot be read ({error!r}): delete the file"
        ) from error
