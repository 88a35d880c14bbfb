"""Random linear classifiers: Theorem 3.6 against FGS (Table 3.1, Figure 3.2).

python -m experiments.peck2017.linear --preset demo
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, mlp_claims, published, study
from experiments.peck2017.comparison import (
    AS_PRINTED,
    FGS,
    compare,
    deviations,
    quantities,
    statistics,
    violations,
)
from tfrobust.commands import run

TABLE = "3.1"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random classifiers and inputs, uniform in the thesis's intervals."""

    tests: Annotated[tuple[Literal[1, 2, 3, 4, 5], ...], DISTINCT] = (1, 2, 3, 4, 5)
    """Rows of Table 3.1."""
    classifiers: Count = 100
    """Of each test."""
    samples: Count = 10
    """Inputs of each classifier."""
    seed: Seed = 0
    """Of weights and inputs."""


PRESETS = {"demo": Settings(classifiers=10), "reduced": Settings(), "paper": Settings()}


def setting(test: int) -> dict[str, Any]:
    """What a row of Table 3.1 says of its test."""
    row = published.TABLES[TABLE][str(test)]
    return {
        "features": int(row["Dimensionality"]),
        "classes": int(row["Classes"]),
        "sample": tuple(json.loads(row["Sample interval"])),
        "parameter": tuple(json.loads(row["Parameter interval"])),
    }


def compared(settings: Settings, test: int) -> pd.DataFrame:
    """Bounds and attacks for the classifiers of a test."""
    row = setting(test)
    features, sample = row["features"], row["sample"]
    model = reference_models.build("linear", input_shape=(features,), classes=row["classes"])
    # M is not stated: half the width of the inputs' interval, 1 where that is [-1, 1]
    reach = (sample[1] - sample[0]) / 2
    attacks = {
        FGS: {"max_epsilon": reach, **AS_PRINTED},
        "fast_gradient_value": {"max_epsilon": 4 * reach * features**0.5, **AS_PRINTED},
    }
    parts = []
    for number in range(settings.classifiers):
        rng = np.random.default_rng((settings.seed, test, number))
        for weight in model.trainable_variables:
            weight.assign(rng.uniform(*row["parameter"], weight.shape))
        x = rng.uniform(*sample, (settings.samples, features)).astype(np.float32)
        frame = compare(model, x, study.WIDE, attacks, tighten=False)
        parts.append(frame.assign(network=number))
    return pd.concat(parts, ignore_index=True)


def report(task: Task, progress: Progress) -> Report:
    """Table 3.1 and Figure 3.2."""
    settings = task.settings
    frames = {
        str(member.settings["test"]): study.frame_of(task, member) for member in progress.finished
    }
    ours = {
        test: {
            "Classifiers": settings.classifiers,
            "Samples": settings.samples,
            "Dimensionality": setting(int(test))["features"],
            "Classes": setting(int(test))["classes"],
            **intervals(setting(int(test))),
            **statistics(deviations(frame)),
        }
        for test, frame in frames.items()
    }
    return study.report_of(
        task,
        title="random linear classifiers",
        lead=f"{settings.classifiers} classifiers per test with {settings.samples} inputs each, "
        "parameters and inputs uniform in the intervals of Table 3.1. Ours: FGS reaches half the "
        "width of the inputs' interval; FGV beside it.",
        tables=[
            Table(
                "Table 3.1",
                "Deviations of FGS's norms from Theorem 3.6's bound, over all classifiers of a "
                "test. The bound is the exact distance of a linear classifier, and FGS is not "
                "exact "
                "in l2, so that a deviation is what FGS takes too much: the thesis calls FGS "
                "exact. "
                "Its means are not what the procedure gives.",
                deviation_table(TABLE, frames),
            ),
            study.cells(TABLE, ours),
            Table("Quantities", study.ABOUT, quantities(frames)),
        ],
        drawings=[
            Drawing(
                "Figure 3.2",
                "Deviations of FGS's norms from the bound, by test of Table 3.1.",
                "figure3.2",
                partial(
                    figures.boxplots,
                    {test: deviations(frame) for test, frame in frames.items()},
                    xlabel="test",
                    ylabel="norm of FGS - bound",
                ),
            )
        ]
        if frames
        else [],
        claims=[*claims.bounds_hold(frames, "Theorem 3.6"), *mlp_claims.linear(frames)],
    )


def intervals(row: dict[str, Any]) -> dict[str, str]:
    """The two intervals as the table prints them."""
    names = {"sample": "Sample interval", "parameter": "Parameter interval"}
    return {column: f"[{row[key][0]}, {row[key][1]}]" for key, column in names.items()}


def deviation_table(table: str, frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per test: ours, the thesis's and their ratio for mean, median and deviation."""
    rows = []
    for test, frame in frames.items():
        found = statistics(deviations(frame))
        row: dict[str, object] = {"test": test}
        for column in ("Mean", "Median", "Std"):
            known = published.value(table, test, column)
            row |= {column: found[column], f"{column}, thesis": known}
            row[f"{column}, ratio"] = found[column] / known
        row |= {"error of mean": found["error of mean"], "Min": found["Min"], "Max": found["Max"]}
        row["rate"] = f"{frame[FGS].notna().mean():.1%}"
        row["violations"] = violations(frame, "printed")
        rows.append(row)
    return pd.DataFrame(rows)


members = partial(grid, "test {test}", "test{test}", test="tests")
EXPERIMENT = study.define_random("linear", PRESETS, members, compared, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
