"""Rewarding delta(h_L(x); f), the last layer's robustness, in training (Figure 4.3).

python -m experiments.peck2017.regularised --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT, NotNegative
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, study
from experiments.peck2017.checks import TableName
from experiments.peck2017.comparison import BOUNDS, fgs_and, summary
from tfrobust.commands import run
from tfrobust.objectives import CrossEntropy, LastLayerRobustness


@dataclasses.dataclass(frozen=True)
class Settings(study.MLPSettings):
    """Data, weights of the reward, training and attacks."""

    dataset: TableName = "wine"
    """iris, wine or spambase, with the thesis's hidden layers."""
    weights: Annotated[tuple[NotNegative, ...], DISTINCT] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """Of the reward; 0 is plain training."""


PRESETS = {
    "demo": Settings(weights=(0.0, 0.1, 0.3, 1.0), seeds=(0,), epochs=40, inputs=50, attack="none"),
    "reduced": Settings(
        dataset="spambase", epochs=15, seeds=(0, 1, 2), inputs=500, attack="deepfool"
    ),
    "paper": Settings(
        dataset="spambase",
        weights=(0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        seeds=tuple(range(10)),
        epochs=200,
        inputs=1000,
        attack="deepfool",
    ),
}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, train, test = task.settings, task.data["train"], task.data["test"]
    objective = CrossEntropy() + LastLayerRobustness(member.settings["weight"])
    model = study.trained_mlp(task, member, settings.dataset, train, objective=objective)
    yield
    x = np.concatenate([test.images, train.images])[: settings.inputs]
    attacks = fgs_and(settings.attack, max_epsilon=train.value_range[1])
    yield from study.bound_attack_and_test(task, member, model, x, test, attacks, batch_size=500)


def report(task: Task, progress: Progress) -> Report:
    """Figure 4.3."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: f"weight {result.settings['weight']:g}")
    networks = study.table_of_networks(results)
    return study.report_of(
        task,
        title="rewarding the last layer's robustness",
        lead=f"MLPs on {settings.dataset}, {len(settings.seeds)} seeds per weight, "
        f"{settings.epochs} epochs; the reward is -weight * mean delta (Theorem 3.6).",
        tables=[
            networks,
            Table("Quantities", study.ABOUT, summary(frames, "figure 4.3")),
        ],
        drawings=_drawings(networks.frame) if frames else [],
        claims=[
            *(
                claims.is_increasing(
                    f"Rewarding delta raises the median {label}",
                    networks.frame.reindex(columns=["weight", f"{quantity}, median"]),
                    "Figure 4.3",
                )
                for label, quantity in (("FGS distance", "FGS"), ("printed bound", "printed bound"))
            ),
            *claims.bounds_hold(frames, "Theorem 4.2"),
        ],
    )


def _drawings(table: pd.DataFrame) -> list[Drawing]:
    means = table.groupby("weight", sort=False).mean()
    lines = {name: means[f"{name}, median"].tolist() for name in ("FGS", *BOUNDS.values())}
    accuracy = {"test accuracy": means["test accuracy"].tolist()}
    curves = partial(figures.curves, means.index.tolist(), xlabel="weight of delta in training")
    return [
        Drawing(
            "Figure 4.3",
            "Medians over examples, means over seeds.",
            "figure4.3",
            partial(curves, lines, ylabel="l2 norm"),
        ),
        Drawing(
            "Figure 4.3, accuracy",
            "What it costs.",
            "figure4.3-accuracy",
            partial(curves, accuracy, ylabel="test accuracy", log=False),
        ),
    ]


members = partial(
    grid,
    "weight {weight:g}, seed {seed}",
    "weight{weight:g}/seed{seed}",
    weight="weights",
    seed="seeds",
)
EXPERIMENT = study.define("regularised", PRESETS, study.load_splits, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
