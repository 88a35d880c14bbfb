"""The page of a cohort: figures, a table of every model, claims, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.etmann2019 import claims, figures
from experiments.etmann2019.cohort import ATTACK_NAMES, Member
from tfrobust import data, report
from tfrobust.runs import Run

SCALE = {
    "demo": "A demonstration on scikit-learn's digits, not the study: other data, fewer models, "
    "shorter training and weaker attacks than the paper's.",
    "reduced": "The paper's data, network and range of λ with a twentieth of its epochs at ten "
    "times its learning rate, half its models, one seed, and a shorter Carlini-Wagner search.",
    "paper": "The published settings, one seed.",
}


def write_page(
    run: Run, preset: str, members: Sequence[Member], sets: Mapping[str, data.Dataset]
) -> Path:
    """Draw the figures, judge the claims and write `report.html`; its path.

    Args:
        run: the run folder.
        preset: name of the preset that the settings started from.
        members: the finished cohort.
        sets: "train" and "test" at least.
    """
    evaluated = len(members[0].alignment)
    images = sets["test"].images[:evaluated]
    drawn = figures.draw(members, images, run.folder / "figures")
    judged = claims.judge(members)
    table = models_table(members)
    run.write_json("claims.json", [vars(claim) for claim in judged])
    with run.writing("models.csv") as path:
        table.to_csv(path, index=False)
    degenerate = [f"λ = {member.weight:g}" for member in members if member.degenerate]
    record = run.record
    source = sets["train"].provenance
    page = report.Page(
        title="Etmann 2019 on " + ("MNIST" if source.name == "mnist" else source.name),
        lead=(
            f"{SCALE[preset]} {len(members)} classifiers trained by double backpropagation on "
            f"{source.examples:,} images ({source.source}), measured and attacked on the first "
            f"{evaluated:,} test images. λ is meant as in "
            f"{_SCALES[run.settings['penalty_scale']]}. Degenerate models (at most three times "
            f"better than guessing): {', '.join(degenerate) or 'none'}."
        ),
        sections=(
            report.Section(
                "Every model",
                "Medians over images; distances in l2, over the images where the attack "
                "succeeded; accuracy on the whole test set.",
                table=table,
            ),
            *(
                report.Section(
                    f"Figure {name.removeprefix('figure')}", figures.CAPTIONS[name], figure=path
                )
                for name, path in drawn.items()
            ),
        ),
        claims=judged,
        settings={"preset": preset, **record["settings"], "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.folder / "report.html")


_SCALES = {
    "batch_mean": "the released code, whose penalty is N² smaller than the printed one for "
    "batches of N",
    "per_example": "the paper's formula",
}


def models_table(members: Sequence[Member]) -> pd.DataFrame:
    """One row a model: accuracy, medians of the measures, medians and success of the attacks."""
    rows = []
    for member in members:
        summary = member.summary
        row = {
            "λ": f"{member.weight:g}",
            "accuracy": summary["test_accuracy"],
            "α": summary["median_alignment"],
            "ρ~": summary["median_linearized_robustness"],
        }
        for attack, name in ATTACK_NAMES.items():
            row[name] = summary[f"median_{attack}"]
            row[f"{name} success"] = f"{summary[f'success_{attack}']:.1%}"
        distance = member.distance("carlini_wagner")
        row["corr(ρ~, CW)"] = claims.correlation(
            member.alignment["linearized_robustness"], distance
        )
        row["corr(ρ~, α)"] = claims.correlation(
            member.alignment["linearized_robustness"], member.alignment["alignment"]
        )
        row["α†"] = summary["median_binarized_alignment"]
        row["|β†|/‖g†‖"] = summary["median_bias_distance"]
        row["same class at x̂"] = f"{summary['median_same_class_at_shift']:.1%}"
        row["undefined"] = summary["undefined_rows"]
        rows.append(row)
    return pd.DataFrame(rows)
