"""The page of `tfrobust rank`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from tfrobust import data, report
from tfrobust.commands.rank.ranking import MEASURES, attacked, correlations
from tfrobust.commands.rank.settings import Settings
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
        tables: of `measured`, by model.
        table: of `ranking`.
        given: whether the user named the attack.

    Raises:
        OSError: a file could not be written.
    """
    with run.writing("ranking.csv") as path:
        table.to_csv(path, index=False)
    broken = int(table["violations"].sum())
    examples = sum(len(each) for each in tables.values())
    count = sum(int(attacked(each).sum()) for each in tables.values())
    loose = [name for name, each in tables.items() if not each["tightened"].all()]
    claim = Claim(
        statement="No attack comes closer than the certified bound",
        verdict="not tested" if not count else "not held" if broken else "held",
        figure=f"{broken} violations in {count} attacked examples (of {examples})",
        source="certified rules",
    )
    kind = "tables" if test.images.ndim == 2 else "images"
    about = (
        "Medians over all examples, l2, in the networks' input units. An example that the attack "
        "did not change counts as infinitely far: inf is the median where it failed on half of "
        "them or more. Equal medians share a rank."
    )
    if loose:
        about += f" Certified by norms alone, not tightened: {', '.join(loose)}."
    page = report.Page(
        title=f"{len(tables)} models ranked on {test.provenance.name}",
        lead=f"The first {len(test):,} test examples of {test.provenance.source}; distances to the "
        f"nearest other class than the predicted one, attack: {settings.attack} "
        f"({'as given' if given else f'chosen for {kind}'}).",
        sections=(
            Section("Ranking", about, table=table),
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
    return report.write(page, run.folder / "report.html")


def draw(tables: dict[str, pd.DataFrame], order: list[str], path: Path) -> Path:
    """Medians and quartiles of every model, from best to worst; infinite ones on a dotted line."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(order)), layout="constrained")
    places = np.arange(len(order))[::-1]
    shown = {words: _quartiles(tables, order, column) for column, words in MEASURES.items()}
    finite = np.concatenate([each.ravel() for each in shown.values()])
    finite = finite[np.isfinite(finite) & (finite > 0)]
    edge = 3 * finite.max() if len(finite) else 1.0
    for shift, (words, quartiles) in zip((0.2, 0, -0.2), shown.items(), strict=True):
        low, middle, high = np.minimum(quartiles, edge).T
        middle = np.where(middle > 0, middle, np.nan)  # the axis is logarithmic
        spread = np.abs(np.stack([middle - low, high - middle]))
        axes.errorbar(middle, places + shift, xerr=spread, fmt="o", capsize=3, label=words)
    axes.set(xscale="log", xlabel="l2 distance", yticks=places, yticklabels=order)
    if any(np.isinf(each).any() for each in shown.values()):
        axes.axvline(edge, color="0.7", linewidth=0.8, linestyle=":")
        axes.set_xlabel("l2 distance (dotted line: infinite)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _quartiles(tables: dict[str, pd.DataFrame], order: list[str], column: str) -> np.ndarray:
    """(models, 3): the first quartile, the median as in the table, the third."""
    result = np.full((len(order), 3), np.nan)
    for row, name in enumerate(order):
        values = tables[name][column].to_numpy(np.float64)
        values = values[~np.isnan(values)]
        if len(values):  # without interpolation, which makes NaN of two infinite values
            first, third = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
            result[row] = first, np.median(values), third
    return result
