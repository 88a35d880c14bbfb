"""MLPs trained on Iris, Wine and Spambase (Table 4.3, Figure 4.2).

python -m experiments.peck2017.trained_mlps --preset demo
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
from experiments.peck2017 import checks, claims, figures, published, study
from experiments.peck2017.comparison import BOUNDS, fgs_and, summary
from tfrobust import data
from tfrobust.commands import run

Sets = dict[str, dict[str, data.Dataset]]
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data sets, training and attacks."""

    datasets: tuple[str, ...] = ("iris", "wine", "spambase")
    """Of `tfrobust.data`; hidden layers are the thesis's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and the order of examples: one network each."""
    epochs: int = 100
    """Of Adam, batches of 10."""
    learning_rate: float = 5e-3
    """Of Adam."""
    inputs: int = 300
    """Examples that are bounded and attacked, test set first, then validation and training."""
    attack: str = "deepfool"
    """A second attack beside FGS; Carlini-Wagner is coarse in a box as wide as these."""


PRESETS = {
    "demo": Settings(datasets=("iris", "wine"), seeds=(0, 1), epochs=40, inputs=50, attack="none"),
    "reduced": Settings(epochs=100, seeds=(0, 1, 2), inputs=1000),
    "paper": Settings(epochs=200, seeds=tuple(range(10)), inputs=5000),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> Sets:
    """Every data set's splits."""
    return {
        name: {split: data.load(name, split, data_dir=data_dir) for split in _SPLITS}
        for name in settings.datasets
    }


def members(settings: Settings) -> list[Member]:
    """One network per data set and seed."""
    return [
        Member(f"{name}, seed {seed}", f"{name}/seed{seed}", {"dataset": name, "seed": seed})
        for name in settings.datasets
        for seed in settings.seeds
    ]


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, name = task.settings, member.settings["dataset"]
    sets = task.data[name]
    model = study.trained(
        task,
        member,
        partial(reference_models.build, f"{name}_mlp"),
        sets["train"],
        iterations=settings.epochs * (len(sets["train"]) // 10),
        batch_size=10,
        learning_rate=settings.learning_rate,
        seed=member.settings["seed"],
    )
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
    rows = [
        {
            "data": result.settings["dataset"],
            "seed": result.settings["seed"],
            "test accuracy": result.accuracy,
            "FGS median": result.frame["fast_gradient_sign"].median(),
            **{f"{words}, median": result.frame[key].median() for key, words in BOUNDS.items()},
        }
        for result in results
    ]
    scatter = Drawing(
        "Figure 4.2",
        "Each example's bounds against the smallest distance found.",
        "figure4.2",
        partial(figures.scatter, frames),
    )
    histograms = [
        Drawing(
            f"Figure 4.2, {name}",
            "Perturbations found and lower bounds.",
            f"figure4.2-{name}",
            partial(figures.histograms, frame, name),
        )
        for name, frame in frames.items()
    ]
    hidden = "; ".join(f"{k} {', '.join(map(str, v))}" for k, v in published.HIDDEN.items())
    return study.report_of(
        task,
        title="trained MLPs",
        lead=f"Hidden tanh units: {hidden}. {len(settings.seeds)} seeds, {settings.epochs} epochs; "
        "features standardised, 70 / 20 / 10 % split.",
        tables=[
            Table("Table 4.3", study.ABOUT + " All seeds together.", summary(frames, "4.3")),
            Table("Every network", "Spread over seeds.", pd.DataFrame(rows)),
        ],
        drawings=[scatter, *histograms] if frames else [],
        claims=claims.bounds_hold(frames, "Theorem 4.2"),
    )


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    common_checks.distinct(settings, "datasets", "seeds")
    common_checks.one_of(settings, checks.TABLES, "datasets")
    common_checks.one_of(settings, checks.SECOND_ATTACKS, "attack")
    common_checks.at_least(settings, 1, "epochs", "inputs")
    common_checks.at_least(settings, 0, "seeds")
    common_checks.positive(settings, "learning_rate")


EXPERIMENT = study.define(
    "trained-mlps",
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
