"""The page of a cohort: figures, a table of every model, claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.common.experiment import Task
from experiments.common.members import Progress
from experiments.common.page import Report, Table
from experiments.etmann2019 import claims, figures
from experiments.etmann2019.results import (
    ATTACK_NAMES,
    Cohort,
    Member,
    partial_summary,
    read_members,
)

__all__ = ["ABOUT_TABLE", "about_models", "models_table", "report", "report_on"]

ABOUT_TABLE = (
    "Medians over images; distances in l2, over the images where the attack succeeded; accuracy on "
    "the whole evaluation set."
)

_SCALES = {
    "batch_mean": "the released code, whose penalty is N² smaller than the printed one for means "
    "over N examples",
    "per_example": "the paper's formula",
}


def report(task: Task, progress: Progress, *, saturates: bool) -> Report:
    """What the page shows of the members that are finished, and of the steps of the others.

    Args:
        task: the run and its data.
        progress: how far its members are.
        saturates: see `claims.judge`.
    """
    study = task.data
    cohort = Cohort(
        name=study.name,
        lead=study.lead,
        members=read_members(task.run, progress.finished),
        pictures=study.pictures,
        settings=task.run.settings,
        record=task.run.record,
    )
    unfinished = {}
    for member in (*(failed for failed, _ in progress.failed), *progress.pending):
        summary = partial_summary(task.run, member.folder)
        if summary is not None:
            unfinished[member.settings["lambda"]] = summary
    return report_on(cohort, unfinished, saturates=saturates)


def report_on(
    cohort: Cohort,
    unfinished: Mapping[float, Mapping[str, Any]] | None = None,
    *,
    saturates: bool,
) -> Report:
    """What the page of a cohort shows.

    Args:
        cohort: its finished members.
        unfinished: summaries of the others by lambda, with what is known.
        saturates: see `claims.judge`.
    """
    table = models_table(cohort.members, unfinished or {})
    return Report(
        title=f"Etmann 2019 on {cohort.name}",
        lead=f"{cohort.lead} {about_models(cohort)}",
        tables=[Table("Every model", ABOUT_TABLE, table, file="models")],
        drawings=figures.drawings([cohort]) if cohort.members else [],
        claims=claims.judge(cohort.members, saturates=saturates),
    )


def about_models(cohort: Cohort) -> str:
    """What lambda means in a cohort, and which models are degenerate."""
    degenerate = [figures.lambda_label(m.weight) for m in cohort.members if m.degenerate]
    return (
        f"λ is meant as in {_SCALES[cohort.settings['penalty_scale']]}. Degenerate models (at most "
        f"three times better than guessing): {'; '.join(degenerate) or 'none'}."
    )


def models_table(
    members: Sequence[Member], unfinished: Mapping[float, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """One row per model: accuracy, medians of the measures, medians and success of the attacks."""
    attacks = claims.attacks_of(members)
    rows = {
        member.weight: _row(member.weight, member.summary, attacks, member) for member in members
    }
    for weight, summary in (unfinished or {}).items():
        rows[weight] = _row(weight, summary, attacks)
    order = sorted(rows) if unfinished else rows
    return pd.DataFrame([rows[weight] for weight in order])


def _row(
    weight: float,
    summary: Mapping[str, Any],
    attacks: Sequence[str],
    member: Member | None = None,
) -> dict[str, Any]:
    """What is known of a model; its correlations once it is finished."""
    row = {
        "λ": f"{weight:,.10g}",
        "accuracy": summary["test_accuracy"],
        "α": summary.get("median_alignment"),
        "ρ~": summary.get("median_linearized_robustness"),
    }
    for attack in attacks:
        name = ATTACK_NAMES[attack]
        row[name] = summary.get(f"median_{attack}")
        row[f"{name} success"] = _share(summary.get(f"success_{attack}"))
    robustness = member.alignment["linearized_robustness"] if member else None
    if "carlini_wagner" in attacks:
        row["corr(ρ~, CW)"] = (
            claims.correlation(robustness, member.distance("carlini_wagner")) if member else None
        )
    row["corr(ρ~, α)"] = (
        claims.correlation(robustness, member.alignment["alignment"]) if member else None
    )
    return {
        **row,
        "α†": summary.get("median_binarized_alignment"),
        "|β†|/‖g†‖": summary.get("median_bias_distance"),
        "same class at x̂": _share(summary.get("median_same_class_at_shift")),
        "undefined": summary.get("undefined_rows"),
    }


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
