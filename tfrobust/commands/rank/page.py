"""The page of `tfrobust rank`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from tfrobust import data, report
from tfrobust.commands.rank.ranking import MEASURES, attacked, correlations
from tfrobust.commands.rank.settings import Settings
from tfrobust.files import atomic_path
from tfrobust.report import Claim, Run, Section

__all__ = ["write_page"]


def write_page(
    run: Run,
    settings: Settings,
    test: data.Dataset,
    tables: dict[str, pd.DataFrame],
    table: pd.DataFrame,
    *,
    given: bool,
) -> Path:
    """Write `ranking.csv`, the figure and `report.html`; the page's path.

    Args:
        run: the folder.
        settings: with the attack that was used.
        test: the examples.
        tables: results of `measured`, by model.
        table: result of `ranking`.
        given: whether the user named the attack.

    Raises:
        OSError: a file could not be written.
    """
    with run.writing("ranking.csv") as path:
        table.to_csv(path, index=False)
    violations = int(table["violations"].sum())
    examples = sum(len(frame) for frame in tables.values())
    attacked_count = sum(int(attacked(frame).sum()) for frame in tables.values())
    untightened = [name for name, frame in tables.items() if not frame["tightened"].all()]
    claim = Claim(
        statement="No attack comes closer than the certified bound",
        verdict="not tested" if not attacked_count else "not held" if violations else "held",
        figure=f"{violations} violations in {attacked_count} attacked examples (of {examples})",
        source="certified rules",
    )
    kind = "tables" if test.images.ndim == 2 else "images"
    explanation = (
        "Medians over all examples, l2, in the networks' input units. An example that the attack "
        "did not change counts as infinitely far: inf is the median where it failed on half of "
        "them or more. Equal medians share a rank."
    )
    if untightened:
        explanation += f" Certified by norms alone, not tightened: {', '.join(untightened)}."
    page = report.Page(
        title=f"{len(tables)} models ranked on {test.provenance.name}",
        lead=f"The first {len(test):,} test examples of {test.provenance.source}; distances to the "
        f"nearest other class than the predicted one, attack: {settings.attack} "
        f"({'as given' if given else f'chosen for {kind}'}).",
        sections=(
            Section("Ranking", explanation, table=table),
            Section(
                "Do the rankings agree?",
                "Spearman's rank correlation of the medians; empty with fewer than three models.",
                table=correlations(table),
            ),
            Section(
                "Distributions",
                "Medians (dots) and quartiles (bars) of the three measures, best certified bound "
                "on top. A certified bound is below every attack; between them lies the true "
                "distance.",
                figure=draw(tables, list(table["model"]), run.path("figures/ranking.png")),
            ),
        ),
        claims=(claim,),
        settings={**run.record["settings"], "started": run.record["started"]},
        versions=run.record["versions"],
    )
    return report.write(page, run.path("report.html"))


def draw(tables: dict[str, pd.DataFrame], order: list[str], path: Path) -> Path:
    """Medians and quartiles of every model, from best to worst; a dotted line for infinity."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(order)), layout="constrained")
    positions = np.arange(len(order))[::-1]
    shown = {measure: _quartiles(tables, order, column) for column, measure in MEASURES.items()}
    finite = np.concatenate([quartiles.ravel() for quartiles in shown.values()])
    finite = finite[np.isfinite(finite) & (finite > 0)]
    edge = 3 * finite.max() if len(finite) else 1.0
    for offset, (measure, quartiles) in zip((0.2, 0, -0.2), shown.items(), strict=True):
        low, middle, high = np.minimum(quartiles, edge).T
        middle = np.where(middle > 0, middle, np.nan)  # the axis is logarithmic
        error_bars = np.abs(np.stack([middle - low, high - middle]))
        axes.errorbar(
            middle, positions + offset, xerr=error_bars, fmt="o", capsize=3, label=measure
        )
    axes.set(xscale="log", xlabel="l2 distance", yticks=positions, yticklabels=order)
    if any(np.isinf(quartiles).any() for quartiles in shown.values()):
        axes.axvline(edge, color="0.7", linewidth=0.8, linestyle=":")
        axes.set_xlabel("l2 distance (dotted line: infinite)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    return path


def _quartiles(tables: dict[str, pd.DataFrame], order: list[str], column: str) -> np.ndarray:
    """First quartile, median (as in the table) and third quartile: (models, 3)."""
    result = np.full((len(order), 3), np.nan)
    for row, name in enumerate(order):
        values = tables[name][column].to_numpy(np.float64)
        values = values[~np.isnan(values)]
        if len(values):  # no interpolation: between two infinite values it is NaN
            first, third = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
            result[row] = first, np.median(values), third
    return result
