"""The page of a cohort: figures, a table of every model, claims, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.etmann2019 import claims, figures
from experiments.etmann2019.results import ATTACK_NAMES, Cohort, Member
from tfrobust import report
from tfrobust.report import Run, Section

__all__ = ["ABOUT_TABLE", "about_models", "figure_sections", "models_table", "write_page"]

ABOUT_TABLE = (
    "Medians over images; distances in l2, over the images where the attack succeeded; accuracy on "
    "the whole evaluation set."
)

_SCALES = {
    "batch_mean": "the released code, whose penalty is N² smaller than the printed one for means "
    "over N examples",
    "per_example": "the paper's formula",
}


def write_page(run: Run, preset: str, cohort: Cohort, *, saturates: bool) -> Path:
    """Draw the figures, judge the claims and write `report.html`; its path.

    Args:
        run: the run folder.
        preset: name of the preset that the settings started from.
        cohort: what the run folder holds, finished.
        saturates: see `claims.judge`.

    Raises:
        OSError: a file could not be written.
    """
    drawn = figures.draw([cohort], run.folder / "figures")
    judged = claims.judge(cohort.members, saturates=saturates)
    run.write_json("claims.json", [vars(claim) for claim in judged])
    table = models_table(cohort.members)
    with run.writing("models.csv") as path:
        table.to_csv(path, index=False)
    record = cohort.record
    page = report.Page(
        title=f"Etmann 2019 on {cohort.name}",
        lead=f"{cohort.lead} {about_models(cohort)}",
        sections=(
            Section("Every model", ABOUT_TABLE, table=table),
            *figure_sections([cohort], drawn),
        ),
        claims=judged,
        settings={"preset": preset, **cohort.settings, "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.folder / "report.html")


def about_models(cohort: Cohort) -> str:
    """What lambda means in a cohort, and which models are degenerate."""
    degenerate = [figures.weight_words(m.weight) for m in cohort.members if m.degenerate]
    return (
        f"λ is meant as in {_SCALES[cohort.settings['penalty_scale']]}. Degenerate models (at most "
        f"three times better than guessing): {'; '.join(degenerate) or 'none'}."
    )


def figure_sections(cohorts: Sequence[Cohort], drawn: Mapping[str, Path]) -> list[Section]:
    """What `figures.draw` drew of the cohorts, each under its number and with its caption."""
    return [
        Section(
            f"Figure {name.removeprefix('figure')}", figures.caption(name, cohorts), figure=path
        )
        for name, path in drawn.items()
    ]


def models_table(members: Sequence[Member]) -> pd.DataFrame:
    """One row a model: accuracy, medians of the measures, medians and success of the attacks."""
    attacks = claims.attacks_of(members)
    rows = []
    for member in members:
        summary = member.summary
        robustness = member.alignment["linearized_robustness"]
        row = {
            "λ": f"{member.weight:,.10g}",
            "accuracy": summary["test_accuracy"],
            "α": summary["median_alignment"],
            "ρ~": summary["median_linearized_robustness"],
        }
        for attack in attacks:
            name = ATTACK_NAMES[attack]
            row[name] = summary[f"median_{attack}"]
            row[f"{name} success"] = f"{summary[f'success_{attack}']:.1%}"
        if "carlini_wagner" in attacks:
            row["corr(ρ~, CW)"] = claims.correlation(robustness, member.distance("carlini_wagner"))
        row["corr(ρ~, α)"] = claims.correlation(robustness, member.alignment["alignment"])
        row["α†"] = summary["median_binarized_alignment"]
        row["|β†|/‖g†‖"] = summary["median_bias_distance"]
        row["same class at x̂"] = f"{summary['median_same_class_at_shift']:.1%}"
        row["undefined"] = summary["undefined_rows"]
        rows.append(row)
    return pd.DataFrame(rows)
