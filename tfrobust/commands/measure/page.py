"""The page of `tfrobust measure`: what was measured, medians, figures, and every image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tfrobust import report
from tfrobust.alignment import describe_inexactness
from tfrobust.commands.measure.figures import class_names, draw
from tfrobust.commands.measure.results import Measured
from tfrobust.commands.measure.settings import Resolved
from tfrobust.commands.subject import Subject
from tfrobust.report import Run, Section

__all__ = ["medians", "write_page"]

_LENGTH = "length"
# field or property of `Alignment`, title, unit
_MEASURES = (
    ("linearized_robustness", "linearized robustness ρ~, eq. (9)", _LENGTH),
    ("alignment", "alignment α, eq. (7)", _LENGTH),
    ("binarized_alignment", "binarized alignment α†, eq. (11)", _LENGTH),
    ("bias_distance", "bias part |β†| / ‖g†‖", _LENGTH),
    ("theorem2_binarized", "bound (14): α† + bias part", _LENGTH),
    ("theorem2", "bound (15): α + ‖x‖ · gap + bias part", _LENGTH),
    ("theorem3", "bound (16): α at x̂ + ‖x̂‖ · gap at x̂", _LENGTH),
    ("shifted_alignment", "α at the bias-shifted input x̂", _LENGTH),
    ("input_norm", "‖x‖", _LENGTH),
    ("shifted_input_norm", "‖x̂‖", _LENGTH),
    ("gradient_gap", "gap ‖g†/‖g†‖ − g/‖g‖‖", "none, 0 to 2"),
    ("shifted_gradient_gap", "gap at x̂, ‖g†/‖g†‖ − ĝ/‖ĝ‖‖", "none, 0 to 2"),
    ("gradient_norm", "‖g‖ of the predicted logit", "logits / length"),
    ("binarized_gradient_norm", "‖g†‖ of the margin", "logits / length"),
    ("margin", "margin Ψ† to the runner-up", "logits"),
    ("homogeneous_margin", "its homogeneous part ⟨x, g†⟩", "logits"),
    ("bias_margin", "its bias part β†", "logits"),
)
_ROWS = 200  # images in the page's table
_RANDOM = "RANDOM WEIGHTS: an untrained network, whose numbers say nothing about a trained one. "


def write_page(run: Run, settings: Resolved, subject: Subject, measured: Measured) -> Path:
    """Write the figures, `images.csv`, `medians.csv` and `report.html`; the page's path.

    Raises:
        OSError: a file could not be written.
    """
    table = medians(subject, measured)
    for name, frame in (("images", measured.table), ("medians", table)):
        with run.writing(f"{name}.csv") as path:
            frame.to_csv(path, index=False)
    record = run.record
    untrained = settings.weights == "none"
    title = f"{subject.name} on {len(subject.x):,} images"
    page = report.Page(
        title=title + (" (random weights)" if untrained else ""),
        lead=(
            f"{_RANDOM if untrained else ''}Alignment, linearized robustness and saliency of "
            f"Etmann 2019 for the predicted classes; no true labels are used. All measures are l2, "
            "in the network's input space, that is after preprocessing."
        ),
        sections=(
            Section("Model", _about_model(settings, subject)),
            Section("Images", _about_images(settings, subject)),
            Section("Medians", _about_medians(subject, measured), table=table),
            Section("Search for the runner-up", _about_search(settings, subject, measured)),
            Section("How exact the decomposition is", _about_decomposition(measured)),
            *draw(run.path("figures"), settings, subject, measured),
            _every_image(settings, subject, measured),
        ),
        settings={**record["settings"], "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.path("report.html"))


def medians(subject: Subject, measured: Measured) -> pd.DataFrame:
    """Median and quartiles of every measure, over the images where it is finite."""
    measures, scale = measured.measures, _scale(subject)
    rows = []
    for name, title, unit in _MEASURES:
        values = np.asarray(getattr(measures, name), float)
        values = values[np.isfinite(values)]
        quartiles = np.quantile(values, (0.25, 0.75)) if len(values) else (np.nan, np.nan)
        row = {
            "measure": title,
            "unit": unit,
            "lower quartile": quartiles[0],
            "median": measures.median(name),
            "upper quartile": quartiles[1],
        }
        if scale not in (None, 1.0):
            length = unit == _LENGTH
            row["median in pixel units"] = row["median"] / scale if length else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _scale(subject: Subject) -> float | None:
    """Network units per pixel unit, rounded to 9 digits; None if it differs between channels."""
    scale = np.round(np.abs(subject.preprocessing.scale), 9)
    return float(scale[0]) if np.ptp(scale) == 0 else None


def _about_model(settings: Resolved, subject: Subject) -> str:
    weights = {
        None: "Architecture and weights come from this file",
        "imagenet": "Weights: Keras's own for ImageNet",
        "none": f"Weights: RANDOM, drawn with seed {settings.seed}",
    }.get(settings.weights, f"Weights: the file {settings.weights}")
    height, width, channels = subject.x.shape[1:]
    preprocessing = subject.preprocessing
    if (
        preprocessing.low == (preprocessing.low[0],) * 3
        and preprocessing.high == (preprocessing.high[0],) * 3
    ):
        mapping = f"0..255 becomes {preprocessing.low[0]:.4g}..{preprocessing.high[0]:.4g}"
    else:
        ranges = zip(preprocessing.low, preprocessing.high, strict=True)
        channel_ranges = ", ".join(f"{low:.4g}..{high:.4g}" for low, high in ranges)
        mapping = f"0..255 becomes {channel_ranges} by channel"
    order = (
        " (channels in the order blue, green, red)" if preprocessing.channels == (2, 1, 0) else ""
    )
    grey = " The model takes greyscale: Y = .299 R + .587 G + .114 B." if channels == 1 else ""
    return (
        f"{settings.model}: {subject.model.count_params():,} parameters, {subject.classes:,} "
        f"classes, input {height} x {width} x {channels}. {weights}; sha256 "
        f"{settings.weights_sha256[:12]}… . Preprocessing {preprocessing.name}: "
        f"{mapping}{order}.{grey}"
    )


def _about_images(settings: Resolved, subject: Subject) -> str:
    height, width = subject.x.shape[1:3]
    text = (
        f"{len(subject.x):,} images of {settings.images}, the first in sorted order, from "
        f"{subject.files[0]} to {subject.files[-1]}: shorter side scaled to {max(height, width)}, "
        f"centre crop of {height} x {width}; sha256 of names and crops "
        f"{settings.images_sha256[:12]}… ."
    )
    if subject.skipped:
        text += f" Left out ({len(subject.skipped)}): {'; '.join(subject.skipped)}."
    return text


def _about_medians(subject: Subject, measured: Measured) -> str:
    scale = _scale(subject)
    if scale is None:
        scales = ", ".join(f"{value:.4g}" for value in subject.preprocessing.scale)
        units = (
            "Lengths are in network units. They are not given in pixel units: a pixel unit has "
            f"a different length in each channel ({scales})."
        )
    elif scale == 1:
        units = "A network unit is a pixel unit of 0..255."
    else:
        units = (
            "Lengths are in network units, in the last column also in pixel units of 0..255, which "
            f"are {scale:.4g} network units."
        )
    measures = measured.measures
    same_class = np.mean(measures.same_class_at_shift)
    text = (
        f"{units} α and ‖x‖ are counted from the network's zero, whichever colour that is. g is "
        "the gradient of the predicted class's logit, † marks the margin to the runner-up, x̂ the "
        f"input shifted by the bias part; the class at x̂ is that at x for {same_class:.1%} of "
        f"{len(measures):,} images."
    )
    if measures.undefined:
        text += (
            " Where a gradient vanishes, or is too small for float32, a measure is undefined and "
            f"left out: {measures.undefined} images have such measures."
        )
    return text


def _about_search(settings: Resolved, subject: Subject, measured: Measured) -> str:
    counts = measured.table["exact_gradients"]
    if settings.search == "exact":
        return f"Exact: the gradients of all {subject.classes:,} classes, for every image."
    return (
        f"Sketch of {settings.directions} random directions: of {subject.classes:,} classes' "
        f"gradients, {counts.median():g} were computed for the median image, at most "
        f"{counts.max()}. The runner-up of an image is wrong with probability at most "
        f"{settings.failure_probability:g}; its ρ~ is then too large."
    )


def _about_decomposition(measured: Measured) -> str:
    errors = measured.measures.decomposition_error
    text = (
        f"On {len(errors):,} images the homogeneous part and the biases' part miss the logits by "
        f"{np.median(errors):.2g} of the largest part at the median, {errors.max():.2g} at worst "
        "(tfrobust.decompose). "
    )
    inexact = describe_inexactness(errors)
    if inexact is not None:
        return f"{text}Warning: {inexact}"
    return f"{text}That is rounding: on these images the network is inside Theorem 1's class."


def _every_image(settings: Resolved, subject: Subject, measured: Measured) -> Section:
    frame, names = measured.table.head(_ROWS), class_names(settings, subject)
    table = pd.DataFrame({"file": frame["file"], "predicted": frame["predicted"]})
    if names:
        table["class"] = [names[index] for index in frame["predicted"]]
    table["runner-up"] = frame["runner_up"]
    table["ρ~"] = frame["linearized_robustness"]
    scale = _scale(subject)
    if scale not in (None, 1.0):
        table["ρ~ in pixel units"] = frame["linearized_robustness"] / scale
    table["α"] = frame["alignment"]
    table["α†"] = frame["binarized_alignment"]
    table["‖g‖"] = frame["gradient_norm"]
    table["margin"] = frame["margin"]
    if settings.search == "sketch":
        table["exact gradients"] = frame["exact_gradients"]
    if measured.attack is not None:
        table[settings.attack] = measured.attack["distance"].reindex(frame.index)
    cut = f" The first {_ROWS} of {len(measured.table):,}." if len(measured.table) > _ROWS else ""
    return Section(
        "Every image",
        f"All measures of all images are in images.parquet and images.csv.{cut}",
        table=table,
    )
