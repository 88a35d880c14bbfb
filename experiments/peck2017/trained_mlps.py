"""MLPs trained on Iris, Wine and Spambase (Table 4.3, Figure 4.2).

python -m experiments.peck2017.trained_mlps --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from experiments.common.checks import DISTINCT
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Report, Table
from experiments.peck2017 import claims, figures, published, study
from experiments.peck2017.checks import TableName
from experiments.peck2017.comparison import fgs_and, summary
from tfrobust.commands import run


@dataclasses.dataclass(frozen=True)
class Settings(study.MLPSettings):
    """Data sets, training and attacks."""

    datasets: Annotated[tuple[TableName, ...], DISTINCT] = ("iris", "wine", "spambase")
    """Of `tfrobust.data`; hidden layers are the thesis's."""


PRESETS = {
    "demo": Settings(datasets=("iris", "wine"), seeds=(0, 1), epochs=40, inputs=50, attack="none"),
    "reduced": Settings(epochs=100, inputs=1000, attack="deepfool"),
    "paper": Settings(epochs=200, seeds=tuple(range(10)), inputs=5000, attack="deepfool"),
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
    x = np.concatenate([sets[split].images for split in ("test", "validation", "train")])
    attacks = fgs_and(settings.attack, max_epsilon=sets["train"].value_range[1])
    yield from study.bound_attack_and_test(
        task, member, model, x[: settings.inputs], sets["test"], attacks, batch_size=500
    )


def report(task: Task, progress: Progress) -> Report:
    """Table 4.3 and Figure 4.2."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: result.settings["dataset"])
    hidden = "; ".join(f"{k} {', '.join(map(str, v))}" for k, v in published.HIDDEN.items())
    return study.report_of(
        task,
        title="trained MLPs",
        lead=f"Hidden tanh units: {hidden}. {len(settings.seeds)} seeds, {settings.epochs} epochs; "
        "features standardised, 70 / 20 / 10 % split.",
        tables=[
            Table("Table 4.3", study.ABOUT + " Over all seeds.", summary(frames, "4.3")),
            study.table_of_networks(results),
        ],
        drawings=[
            *figures.scatter_of(frames, "Figure 4.2", "figure4.2"),
            *figures.histograms_of(frames, "Figure 4.2, {}", "figure4.2-{}"),
        ],
        claims=claims.bounds_hold(frames, "Theorem 4.2"),
    )


members = partial(
    grid, "{dataset}, seed {seed}", "{dataset}/seed{seed}", dataset="datasets", seed="seeds"
)
EXPERIMENT = study.define("trained-mlps", PRESETS, load, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
