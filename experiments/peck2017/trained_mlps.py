"""MLPs trained on Iris, Wine and Spambase (Table 4.3, Figure 4.2).

python -m experiments.peck2017.trained_mlps --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, mlp_claims, published, study
from experiments.peck2017.checks import SecondAttack, TableName
from experiments.peck2017.comparison import (
    FGS,
    attacked_by,
    deviations,
    fgs_and,
    quantities,
    statistics,
    violations,
)
from tfrobust.commands import run

TABLE = "4.3"


@dataclasses.dataclass(frozen=True)
class Settings(study.MLPSettings):
    """Data sets, training and attacks."""

    datasets: Annotated[tuple[TableName, ...], DISTINCT] = ("iris", "wine", "spambase")
    """Of `tfrobust.data`; hidden layers are the thesis's."""
    inputs: Literal["test", "all"] = "all"
    """Examples that are bounded and attacked: not stated."""
    attack: SecondAttack = "none"
    """A second attack beside FGS: L-BFGS is the thesis's future work (section 6.1)."""


PRESETS = {
    "demo": Settings(datasets=("iris", "wine"), seeds=(0, 1), epochs=40),
    "reduced": Settings(epochs=100, inputs="test", attack="lbfgs"),
    "paper": Settings(epochs=200, seeds=tuple(range(10)), attack="lbfgs"),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, study.Splits]:
    """Every data set's splits."""
    return {name: study.splits(name, data_dir, "train", "validation") for name in settings.datasets}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, name = task.settings, member.settings["dataset"]
    sets = task.data[name]
    model = study.trained_mlp(task, member, name, sets["train"])
    yield
    splits = ("test",) if settings.inputs == "test" else ("test", "validation", "train")
    x = np.concatenate([sets[split].images for split in splits])
    attacks = fgs_and(settings.attack, max_epsilon=settings.max_epsilon)
    yield from study.bound_attack_and_test(
        task, member, model, x, sets["test"], attacks, batch_size=500
    )


def report(task: Task, progress: Progress) -> Report:
    """Table 4.3 and Figure 4.2."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: result.settings["dataset"].capitalize())
    ours = {name: statistics(deviations(frame)) for name, frame in frames.items()}
    accuracies = {
        name: float(
            np.mean([r.accuracy for r in results if r.settings["dataset"].capitalize() == name])
        )
        for name in frames
    }
    hidden = "; ".join(f"{k} {', '.join(map(str, v))}" for k, v in published.HIDDEN.items())
    examples = "the test set" if settings.inputs == "test" else "the whole data set"
    return study.report_of(
        task,
        title="trained MLPs",
        lead=f"Hidden tanh units: {hidden}; features standardised over the whole set, then 70 / 20 "
        f"/ 10 % training, test and validation. Ours, not stated: Adam for {settings.epochs} "
        "epochs "
        f"of batches of 10, {len(settings.seeds)} seeds, attacks on {examples}, epsilon up to "
        f"{settings.max_epsilon:g}.",
        tables=[
            Table(
                "Table 4.3",
                "Deviations of attacks' norms from Theorem 4.2's bound, over all seeds; FGS is the "
                "thesis's. Variance and standard error of the mean, over networks, are its future "
                "work (section 6.1).",
                _table(frames),
            ),
            study.cells(TABLE, ours),
            Table("Quantities", study.ABOUT + " Over all seeds.", quantities(frames)),
            study.table_of_networks(results),
        ],
        drawings=[
            Drawing(
                "Figure 4.2",
                "Deviations of FGS's norms from the bound, over all seeds.",
                "figure4.2",
                partial(
                    figures.boxplots,
                    {name: deviations(frame) for name, frame in frames.items()},
                    ylabel="norm of FGS - bound",
                ),
            ),
            *figures.scatter_of(frames, "Bounds against attacks", "bounds4.3"),
        ]
        if frames
        else [],
        claims=[
            *claims.bounds_hold(frames, "Theorem 4.2"),
            *mlp_claims.trained_mlps(frames, accuracies),
        ],
    )


def _table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per data set and attack."""
    rows = []
    for name, frame in frames.items():
        for attack in attacked_by(frame):
            found = statistics(deviations(frame, attack))
            row: dict[str, object] = {"data": name, "attack": attack}
            for column in published.TABLES[TABLE][name]:
                row[column] = found[column]
                if attack == FGS:
                    row[f"{column}, thesis"] = published.value(TABLE, name, column)
            over_networks = (frame[attack] - frame["printed"]).groupby(frame["network"]).mean()
            row["variance"] = found["Std"] ** 2
            row["error of mean"] = over_networks.sem()
            row["rate"] = f"{frame[attack].notna().mean():.1%}"
            row["violations"] = violations(frame, "printed")
            rows.append(row)
    return pd.DataFrame(rows)


members = partial(
    grid, "{dataset}, seed {seed}", "{dataset}/seed{seed}", dataset="datasets", seed="seeds"
)
EXPERIMENT = study.define("trained-mlps", PRESETS, load, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
