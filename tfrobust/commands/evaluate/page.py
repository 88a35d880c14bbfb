"""The page of `tfrobust evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfrobust import report
from tfrobust.commands.evaluate.summary import conditions, rows
from tfrobust.report import Run, Section, figures

__all__ = ["write_page"]

_ROWS = 200  # examples in the page's table


def write_page(run: Run, title: str, summary: dict[str, Any], table: pd.DataFrame) -> Path:
    """Write the figure and `report.html`; the page's path.

    Args:
        run: the folder.
        title: of the page.
        summary: plain data of `Benchmark.summary`.
        table: of `Benchmark.to_frame`.

    Raises:
        StorageError: a file could not be written.
    """
    record = run.record
    certified = summary["uncertified"] is None
    reason = "" if certified else f" No certificates: {summary['uncertified']}"
    between = "Between the curves lies the true robust accuracy." if certified else ""
    page = report.Page(
        title=title,
        lead=f"Accuracy, robust accuracy and alignment; {conditions(summary)}.",
        sections=(
            Section(
                "Summary",
                "Robust accuracy is the share of all examples that are classified correctly "
                "together with every valid input within epsilon. Attacks bound it from above, "
                f"certificates from below.{reason}",
                table=pd.DataFrame(rows(summary), columns=["quantity", "value", "meaning"]),
            ),
            Section(
                "Robust accuracy at every epsilon",
                f"Left: {between} The dashed line is epsilon. Right: each correctly classified "
                "example's distances; above the diagonal, an attack needed more than the "
                "linearized robustness, or than was proven.",
                figure=_draw(run.path("figures"), summary, table),
            ),
            Section(
                "Every example",
                "All examples are in examples.parquet."
                + (f" The first {_ROWS} of {len(table):,}." if len(table) > _ROWS else ""),
                table=table.head(_ROWS).astype({"correct": str}),
            ),
        ),
        settings={**record["settings"], "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.path("report.html"))


def _draw(folder: Path, summary: dict[str, Any], table: pd.DataFrame) -> Path:
    correct = table["correct"].to_numpy()
    distance = np.where(correct, table["distance"], 0).astype(float)
    radius = np.where(correct, table["certified_radius"], 0).astype(float)
    robustness = table["linearized_robustness"].to_numpy(float)
    certified = summary["uncertified"] is None
    finite = distance[np.isfinite(distance)]
    end = 1.1 * max(finite.max(initial=0), summary["epsilon"]) or 1.0
    with figures.style():
        figure, axes = figures.new(1, 2, width=4.2)
        curves = [(distance, "attacks: upper bound", "#31688e")]
        if certified:
            curves.append((radius, "certified: lower bound", "#35b779"))
        for values, label, color in curves:
            edges = np.concatenate([[0], np.sort(values[(values > 0) & (values < end)]), [end]])
            shares = [100 * np.mean(correct & (values > edge)) for edge in edges]
            axes[0, 0].step(edges, shares, where="post", label=label, color=color)
        axes[0, 0].axvline(summary["epsilon"], color="0.5", linewidth=0.8, linestyle="--")
        axes[0, 0].set(xlabel="epsilon", ylabel="robust accuracy (%)", ylim=(0, 102), xlim=(0, end))
        axes[0, 0].legend()
        attacked = correct & np.isfinite(distance) & (distance > 0)
        pairs = [(robustness, "linearized robustness", "#440154", "+")]
        if certified:
            pairs.append((radius, "certified radius", "#35b779", "."))
        for values, label, color, marker in pairs:
            shown = attacked & np.isfinite(values)
            axes[0, 1].plot(
                values[shown], distance[shown], marker, label=label, color=color, alpha=0.7
            )
        axes[0, 1].axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle="--")
        axes[0, 1].set(xlim=(0, None), ylim=(0, None))
        axes[0, 1].set(xlabel="bound or estimate", ylabel="smallest perturbation found")
        axes[0, 1].legend()
    return figures.save(figure, folder, "robust-accuracy")
