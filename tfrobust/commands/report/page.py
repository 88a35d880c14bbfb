"""The page of `tfrobust report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tfrobust import report
from tfrobust.commands.report.records import PHI
from tfrobust.commands.report.settings import LeftOut, Settings
from tfrobust.commands.report.table import (
    DISTANCES,
    Measured,
    kind_of,
    shown,
    sorted_by_training,
    table_of,
    violations,
)
from tfrobust.report import Claim, Run, Section, figures

__all__ = ["write_page"]

_MARKERS = "os^Dv<>Ph*X"
_SYMBOLS = {"certified_bound": "|", "linearized_robustness": "d", "attack_distance": "o"}


def write_page(
    run: Run,
    settings: Settings,
    measured: Sequence[Measured],
    left_out: Sequence[LeftOut],
    runs: Sequence[str],
) -> Path:
    """Print the table; write `classifiers.csv`, the figures and `report.html`; the page's path.

    Args:
        run: the folder of the report.
        settings: how was measured.
        measured: the classifiers.
        left_out: the other models.
        runs: the folders that the user gave.

    Raises:
        OSError: a file could not be written.
    """
    measured = sorted_by_training(measured)
    table = table_of(measured, settings)
    with run.writing("classifiers.csv") as path:
        table.to_csv(path, index=False)
    visible = shown(table)
    print(visible.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    sets = list(dict.fromkeys(each.data for each in measured))
    names = list(dict.fromkeys(each.found.run for each in measured))
    norm = "l-infinity" if settings.norm == "inf" else "l2"
    folder = run.path("figures")
    colors = _colors(measured)
    record = run.record
    page = report.Page(
        title=f"{len(measured)} classifiers of {len(names)} {_plural('run', names)}",
        lead=f"Trained on {', '.join(sets)} in {', '.join(names)}; measured on the first "
        f"{settings.examples:,} test examples of each data set, or all where there are fewer.",
        sections=(
            Section("Every classifier", _UNITS, table=visible),
            *_reasons(measured),
            Section(
                "Columns",
                "All numbers, with architectures and the files' hashes, are in classifiers.csv.",
                table=_meanings(settings, norm),
            ),
            *_others(left_out),
            Section(
                "Robust accuracy against accuracy",
                f"Worst case over {settings.restarts} {_plural('restart', settings.restarts)}, "
                f"{norm} {settings.epsilon:g}. No classifier can lie above the dashed line.",
                figure=figures.save(
                    _accuracies(measured, table, sets, names, colors), folder, "accuracies"
                ),
            ),
            Section(
                "Distances",
                "Medians and quartiles over correctly classified examples. No attack is closer "
                "than the certified bound; between the two lies the true distance.",
                figure=figures.save(_distances(measured, sets, colors), folder, "distances"),
            ),
        ),
        claims=(_bound_holds(measured),),
        settings={"runs": " ".join(runs), **record["settings"], "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.path("report.html"))


_UNITS = (
    "Lengths of images are in units of the pixel range, as if every network took pixels in [0, 1], "
    "whatever range it was trained on; gradients are with respect to these pixels. Lengths of "
    "tables and of points are in the units of their features."
)


def _meanings(settings: Settings, norm: str) -> pd.DataFrame:
    right = "median over correctly classified examples"
    starts = f"{settings.restarts} random {_plural('start', settings.restarts)}"
    rows = {
        "objective": "what was minimised; radii of adversarial training are lengths too",
        "robust, %": f"accuracy under projected gradient descent, {norm} {settings.epsilon:g}, "
        f"{settings.steps} steps, {starts}: mean over them",
        "worst case, %": "share that is classified correctly and resists all of them",
        "certified bound": f"no smaller perturbation changes the class, {norm}; {right}",
        "ρ~": f"linearized robustness, l2 (Etmann 2019, eq. (9)); {right}",
        "attack distance": f"{settings.attack}, {norm}, infinite where it failed; {right}",
        "α": f"alignment, l2 (Etmann 2019, eq. (7)); {right}",
        "‖J_c‖": "l2 norm of the gradient of the label's logit; mean over all examples",
        "cosine": "of that gradient, at the first training examples, with the SmoothGrad maps of "
        f"an adversarially trained network, values within {PHI:g} standard deviation of a map's "
        "mean set to zero (Noack 2020); mean",
    }
    return pd.DataFrame(rows.items(), columns=["column", "meaning"])


def _reasons(measured: Sequence[Measured]) -> list[Section]:
    """The table of empty cells, one row per column and reason."""
    cells: dict[tuple[str, str], list[str]] = {}
    for each in measured:
        for column, reason in each.empty.items():
            cells.setdefault((column, reason), []).append(str(each.found))
    if not cells:
        return []
    rows = [
        {"column": column, "classifiers": _listed(names, len(measured)), "reason": reason}
        for (column, reason), names in cells.items()
    ]
    return [Section("Empty cells", "", table=pd.DataFrame(rows))]


def _listed(names: Sequence[str], total: int) -> str:
    return f"all {total}" if len(names) == total > 1 else ", ".join(names)


def _others(left_out: Sequence[LeftOut]) -> list[Section]:
    if not left_out:
        return []
    table = pd.DataFrame([dataclasses.asdict(each) for each in left_out])
    return [Section("Left out", "Models that are not in the table.", table=table)]


def _bound_holds(measured: Sequence[Measured]) -> Claim:
    """The certified bounds that some attack could have shown to be wrong."""
    found, tested = sum(map(violations, measured)), 0
    for each in measured:
        frame = each.examples
        attacked = frame["correct"] & np.isfinite(frame["attack_distance"])
        tested += int((attacked & frame["certified_bound"].notna()).sum())
    return Claim(
        statement="No attack comes closer than the certified bound",
        verdict="not tested" if not tested else "not held" if found else "held",
        figure=f"{found} violations in {tested} attacked examples",
        source="certified rules",
    )


def _colors(measured: Sequence[Measured]) -> dict[str, str]:
    """One per kind of objective; the same on all figures."""
    kinds = sorted({kind_of(each.record) for each in measured}, key=lambda k: (k != "standard", k))
    palette = mpl.colormaps["tab10"]
    return {kind: mpl.colors.to_hex(palette(k % 10)) for k, kind in enumerate(kinds)}


def _accuracies(
    measured: Sequence[Measured],
    table: pd.DataFrame,
    sets: Sequence[str],
    names: Sequence[str],
    colors: dict[str, str],
) -> Figure:
    """A panel per data set; one point per classifier, coloured by objective, shaped by run."""
    markers = {name: _MARKERS[k % len(_MARKERS)] for k, name in enumerate(names)}
    figure, axes = figures.new(1, len(sets), width=3.6, height=3.2)
    with figures.style():
        for axis, name in zip(axes[0], sets, strict=True):
            for each, (_, row) in zip(measured, table.iterrows(), strict=True):
                if each.data == name:
                    axis.plot(
                        100 * row["accuracy"],
                        100 * row["robust_accuracy_worst"],
                        markers[each.found.run],
                        color=colors[kind_of(each.record)],
                        alpha=0.8,
                    )
            axis.axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle="--")
            axis.set(xlim=(-2, 102), ylim=(-2, 102), title=name)
            axis.set(xlabel="accuracy (%)", ylabel="robust accuracy (%)")
        handles = [_handle("o", color, kind) for kind, color in colors.items()]
        if len(names) > 1:
            handles += [_handle(marker, "0.4", name) for name, marker in markers.items()]
        figure.legend(handles=handles, loc="outside right upper")
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + 2.6, max(height, 0.3 * len(handles)))
    return figure


def _distances(measured: Sequence[Measured], sets: Sequence[str], colors: dict[str, str]) -> Figure:
    """A panel per data set: medians and quartiles of each; a dotted line for infinity."""
    groups = [[each for each in measured if each.data == name] for name in sets]
    heights = [0.8 + 0.36 * len(group) for group in groups]
    with figures.style():
        figure = Figure(figsize=(8.6, sum(heights) + 0.8), layout="constrained")
        axes = figure.subplots(len(sets), 1, squeeze=False, height_ratios=heights)[:, 0]
        several = len({each.found.run for each in measured}) > 1
        for axis, group, name in zip(axes, groups, sets, strict=True):
            labels = [str(each.found) if several else each.found.network for each in group]
            positions = np.arange(len(group))[::-1]
            quartiles = {column: _quartiles(group, column) for column in DISTANCES}
            every = np.concatenate([values.ravel() for values in quartiles.values()])
            finite = every[np.isfinite(every) & (every > 0)]
            edge = 3 * finite.max() if len(finite) else 1.0
            for offset, (column, values) in zip((0.2, 0, -0.2), quartiles.items(), strict=True):
                for place, each, (low, middle, high) in zip(
                    positions, group, np.minimum(values, edge), strict=True
                ):
                    if middle > 0:  # the axis is logarithmic
                        axis.errorbar(
                            middle,
                            place + offset,
                            xerr=[[middle - low], [high - middle]],
                            fmt=_SYMBOLS[column],
                            color=colors[kind_of(each.record)],
                            markersize=7 if column == "certified_bound" else 4,
                        )
            axis.set(xscale="log", yticks=positions, yticklabels=labels, title=name)
            unit = "units of its features" if group[0].is_table else "units of the pixel range"
            axis.set_xlabel(f"distance, {unit}")
            if np.isinf(every).any():
                axis.axvline(edge, color="0.7", linewidth=0.8, linestyle=":")
                axis.set_xlabel(f"distance, {unit} (dotted line: infinite)")
        handles = [_handle(_SYMBOLS[column], "0.3", title) for column, title in DISTANCES.items()]
        handles += [_handle("s", color, kind) for kind, color in colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _handle(marker: str, color: str, label: str) -> mpl.lines.Line2D:
    return mpl.lines.Line2D([], [], marker=marker, color=color, linestyle="none", label=label)


def _quartiles(group: Sequence[Measured], column: str) -> np.ndarray:
    """First quartile, median and third quartile over correct examples: (classifiers, 3)."""
    result = np.full((len(group), 3), np.nan)
    for row, each in enumerate(group):
        values = each.examples[column].to_numpy(np.float64)[each.examples["correct"].to_numpy()]
        values = values[~np.isnan(values)]
        if len(values):  # no interpolation: between two infinite values it is NaN
            first, third = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
            result[row] = first, np.median(values), third
    return result


def _plural(noun: str, count: int | Sequence[str]) -> str:
    number = count if isinstance(count, int) else len(count)
    return noun if number == 1 else f"{noun}s"
