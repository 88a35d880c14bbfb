"""Depth against width at equal parameters, the thesis's future work (section 6.1).

python -m experiments.peck2017.depth --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Positive, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, study
from experiments.peck2017.checks import Activation, Images
from experiments.peck2017.comparison import BOUNDS, fgs_and, quantities
from tfrobust.commands import run


@dataclasses.dataclass(frozen=True)
class Settings:
    """MLPs of one size, training and attacks."""

    dataset: Images = "digits"
    """Images."""
    depths: Annotated[tuple[Count, ...], DISTINCT] = (1, 2, 3, 4, 5)
    """Hidden layers."""
    parameters: Count = 60_000
    """Of every network, as nearly as whole widths allow."""
    activation: Activation = "tanh"
    """Of the hidden layers."""
    iterations: Count = 1500
    """Adam iterations, rounded up to whole epochs."""
    learning_rate: Positive = 1e-3
    """Of Adam."""
    batch_size: Count = 32
    """Of training."""
    images: Count = 200
    """The first so many test images are bounded and attacked."""
    seeds: Annotated[tuple[Seed, ...], DISTINCT] = (0, 1, 2)
    """Networks of each depth."""


PRESETS = {
    "demo": Settings(depths=(1, 3), seeds=(0,), iterations=150, images=30),
    "reduced": Settings(),
    "paper": Settings(dataset="mnist", iterations=10_000, images=1000, seeds=tuple(range(10))),
}


def width_for(inputs: int, classes: int, depth: int, parameters: int) -> int:
    """Units per hidden layer of an MLP whose number of parameters is nearest to `parameters`."""

    def count(width: int) -> int:
        return (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * classes

    width = 1
    while count(width + 1) <= parameters:
        width += 1
    return min(width, width + 1, key=lambda each: abs(count(each) - parameters))


def load(settings: Settings, preset: str, data_dir: Path | None) -> study.Splits:
    """Training and test images."""
    return study.splits(settings.dataset, data_dir, "train")


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train, bound, attack."""
    settings, train, test = task.settings, task.data["train"], task.data["test"]
    depth, shape = member.settings["depth"], test.images.shape[1:]
    width = width_for(int(test.images[0].size), test.classes, depth, settings.parameters)
    model = study.trained(
        task,
        member,
        partial(
            reference_models.build,
            "mlp",
            input_shape=shape,
            hidden=(width,) * depth,
            classes=test.classes,
            activation=settings.activation,
        ),
        train,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=member.settings["seed"],
    )
    yield
    x, attacks = test.images[: settings.images], fgs_and("deepfool", max_epsilon=1.0)
    yield from study.bound_attack_and_test(task, member, model, x, test, attacks)


def report(task: Task, progress: Progress) -> Report:
    """A table and a figure over depth."""
    settings = task.settings
    results = study.read_results(task, progress)
    frames = study.concatenated(results, lambda result: f"{result.settings['depth']} hidden")
    networks = study.table_of_networks(results)
    networks.frame["DeepFool, median"] = [r.frame["deepfool"].median() for r in results]
    lines = {"FGS": "FGS, median", "DeepFool": "DeepFool, median"}
    lines |= {name: f"{name}, median" for name in BOUNDS.values()}
    statement = "Shallow networks are more robust than deeper ones"
    judged = [
        claims.trend(
            f"{statement}: {label}",
            networks.frame.reindex(columns=["depth", lines[label]]),
            "Section 6.1",
            rises=False,
        )
        for label in ("DeepFool", "FGS")
    ]
    return study.report_of(
        task,
        title="depth against width",
        lead=f"MLPs of about {settings.parameters:,} parameters on {settings.dataset}, "
        f"{settings.activation} units, {len(settings.seeds)} seeds per depth. The thesis expects "
        "shallow networks to be more robust and leaves it open.",
        tables=[
            Table("By depth", "Means over seeds.", _means(networks.frame)),
            networks,
            Table("Quantities", study.ABOUT, quantities(frames)),
        ],
        drawings=[_drawing(networks.frame, lines)] if frames else [],
        claims=[*judged, *claims.bounds_hold(frames, "Theorem 4.2")],
    )


def _means(networks: pd.DataFrame) -> pd.DataFrame:
    if not len(networks):
        return networks
    return networks.drop(columns="seed").groupby("depth").mean().reset_index()


def _drawing(networks: pd.DataFrame, lines: dict[str, str]) -> Drawing:
    means = _means(networks)
    values = {label: means[column].tolist() for label, column in lines.items()}
    return Drawing(
        "Distances and bounds over depth",
        "Medians over images, means over seeds, l2.",
        "depth",
        partial(
            figures.curves,
            means["depth"].tolist(),
            values,
            xlabel="hidden layers",
            ylabel="l2 norm",
            xticks=means["depth"].tolist(),
        ),
    )


members = partial(
    grid, "{depth} hidden, seed {seed}", "{depth}/seed{seed}", depth="depths", seed="seeds"
)
EXPERIMENT = study.define("depth", PRESETS, load, members, steps, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
