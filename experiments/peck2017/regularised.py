"""Rewarding delta(h_L(x); f), the last layer's robustness, in training (Figure 4.3).

python -m experiments.peck2017.regularised --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import reference_models
from experiments.common import checks as common_checks
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import checks, claims, figures, study
from experiments.peck2017.comparison import BOUNDS, fgs_and, summary
from tfrobust import data
from tfrobust.commands import run
from tfrobust.objectives import CrossEntropy, LastLayerRobustness
from tfrobust.report import Claim


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data, weights of the reward, training and attacks."""

    dataset: str = "wine"
    """iris, wine or spambase, with the thesis's hidden layers."""
    weights: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """Of the reward; 0 is plain training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks for each weight."""
    epochs: int = 60
    """Of Adam, batches of 10."""
    learning_rate: float = 5e-3
    """Of Adam."""
    inputs: int = 100
    """Examples that are bounded and attacked."""
    attack: str = "none"
    """A second attack beside FGS."""


PRESETS = {
    "demo": Settings(weights=(0.0, 0.1, 0.3, 1.0), seeds=(0,), epochs=40, inputs=50),
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


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, data.Dataset]:
    """Training and test set."""
    return {
        split: data.load(settings.dataset, split, data_dir=data_dir) for split in ("train", "test")
    }


def members(settings: Settings) -> list[Member]:
    """One network per weight and seed."""
    return [
        Member(
            f"weight {weight:g}, seed {seed}",
            f"weight{weight:g}/seed{seed}",
            {"weight": weight, "seed": seed},
        )
        for weight in settings.weights
        for seed in settings.seeds
    ]


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, train, test = task.settings, task.data["train"], task.data["test"]
    model = study.trained(
        task,
        member,
        partial(reference_models.build, f"{settings.dataset}_mlp"),
        train,
        iterations=settings.epochs * (len(train) // 10),
        batch_size=10,
        learning_rate=settings.learning_rate,
        seed=member.settings["seed"],
        objective=CrossEntropy() + LastLayerRobustness(member.settings["weight"]),
    )
    yield
    x = np.concatenate([test.images, train.images])[: settings.inputs]
    attacks = fgs_and(settings.attack, max_epsilon=train.value_range[1])
    yield from study.bound_attack_and_test(task, member, model, x, test, attacks, batch_size=500)


def report(task: Task, progress: Progress) -> Report:
    """Figure 4.3."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: f"weight {result.settings['weight']:g}")
    table = pd.DataFrame(
        [
            {
                "weight": result.settings["weight"],
                "seed": result.settings["seed"],
                "test accuracy": result.accuracy,
                "FGS": result.frame["fast_gradient_sign"].median(),
                **{words: result.frame[key].median() for key, words in BOUNDS.items()},
            }
            for result in results
        ],
        columns=["weight", "seed", "test accuracy", "FGS", *BOUNDS.values()],
    )
    means = table.drop(columns="seed").groupby("weight", sort=False).mean()
    return study.report_of(
        task,
        title="rewarding the last layer's robustness",
        lead=f"MLPs on {settings.dataset}, {len(settings.seeds)} seeds per weight, "
        f"{settings.epochs} epochs; the reward is -weight * mean delta (Theorem 3.6).",
        tables=[
            Table("Every network", "Medians over examples.", table),
            Table("Quantities", study.ABOUT, summary(frames, "figure 4.3")),
        ],
        drawings=_drawings(means) if frames else [],
        claims=[
            _is_raised("FGS distance", "FGS", table, means),
            _is_raised(BOUNDS["printed"], BOUNDS["printed"], table, means),
            *claims.bounds_hold(frames, "Theorem 4.2"),
        ],
    )


def _drawings(means: pd.DataFrame) -> list[Drawing]:
    weights = means.index.tolist()
    lines = {name: means[name].tolist() for name in means.columns}
    accuracy = {"test accuracy": lines.pop("test accuracy")}
    curves = partial(figures.curves, weights, xlabel="weight of delta in training")
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


def _is_raised(quantity: str, column: str, table: pd.DataFrame, means: pd.DataFrame) -> Claim:
    return claims.is_increasing(
        f"Rewarding delta raises the median {quantity}",
        means.index.tolist(),
        means[column].tolist(),
        "Figure 4.3",
        networks=pd.DataFrame({"x": table["weight"], "y": table[column]}),
    )


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    common_checks.distinct(settings, "weights", "seeds")
    common_checks.one_of(settings, checks.TABLES, "dataset")
    common_checks.one_of(settings, checks.SECOND_ATTACKS, "attack")
    common_checks.positive(settings, "weights", zero=True)
    common_checks.at_least(settings, 1, "epochs", "inputs")
    common_checks.at_least(settings, 0, "seeds")
    common_checks.positive(settings, "learning_rate")


EXPERIMENT = study.define(
    "regularised",
    PRESETS,
    check_settings=check_settings,
    members=members,
    steps=steps,
    report=report,
    load=load,
)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line; the page's path."""
    return execute(EXPERIMENT, arguments)


if __name__ == "__main__":
    run(main)
