"""Random linear classifiers: Theorem 3.6 against FGS and FGV (Table 3.1, Figure 3.2).

python -m experiments.peck2017.linear --preset demo
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Seed, at_least
from experiments.common.claims import judged
from experiments.common.experiment import Task, execute
from experiments.common.members import Progress, grid
from experiments.common.page import Report, Table
from experiments.peck2017 import claims, figures, study
from experiments.peck2017.comparison import compare, summary
from tfrobust.commands import run
from tfrobust.report import Claim


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random classifiers and inputs, all standard normal."""

    features: Annotated[tuple[Count, ...], DISTINCT] = (2, 20, 200)
    """Numbers of inputs."""
    classes: Annotated[tuple[Annotated[int, at_least(2)], ...], DISTINCT] = (2, 5)
    """Numbers of classes; every pair with `features` is one classifier."""
    inputs: Count = 100
    """Random inputs of each classifier."""
    seed: Seed = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(),
    "reduced": Settings(features=(2, 10, 100, 1000), classes=(2, 10), inputs=1000),
    "paper": Settings(features=(2, 10, 100, 1000), classes=(2, 10, 100), inputs=10_000),
}


def compared(settings: Settings, features: int, classes: int) -> pd.DataFrame:
    """Bounds and attacks for one random classifier."""
    rng = np.random.default_rng((settings.seed, features, classes))
    model = reference_models.build("linear", input_shape=(features,), classes=classes)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    x = rng.normal(size=(settings.inputs, features)).astype(np.float32)
    steps = {"max_epsilon": 50.0, "steps": 30}
    reach = {"max_epsilon": 50.0 * features**0.5, "steps": 30}
    attacks = {"fast_gradient_sign": steps, "fast_gradient_value": reach}
    return compare(model, x, study.WIDE, attacks, tighten=False)


def report(task: Task, progress: Progress) -> Report:
    """Table 3.1 and Figure 3.2."""
    frames = {member.name: study.frame_of(task, member) for member in progress.finished}
    last = dict(list(frames.items())[-1:])
    exact = (
        "Theorem 3.6's bound is the exact distance of a linear classifier: FGV reaches it with two "
        "classes, FGS does not in many dimensions."
    )
    return study.report_of(
        task,
        title="random linear classifiers",
        lead=f"{len(frames)} classifiers with standard normal weights, {task.settings.inputs:,} "
        "standard normal inputs each.",
        tables=[Table("Table 3.1", study.ABOUT, summary(frames, "3.1"))],
        drawings=[
            *figures.scatter_of(frames, "Figure 3.2", "figure3.2", exact),
            *figures.histograms_of(last, "Figure 3.2, histograms", "figure3.2-histograms"),
        ],
        claims=[*claims.bounds_hold(frames, "Theorem 3.6"), reached(frames)],
    )


def reached(frames: dict[str, pd.DataFrame]) -> Claim:
    """With two classes the loss gradient points to the boundary: FGV finds the exact distance."""
    statement = "With two classes FGV's smallest perturbation has the length of the bound"
    two = [frame for name, frame in frames.items() if name.endswith(" 2 classes")]
    ratios = np.concatenate([[], *(f["fast_gradient_value"] / f["printed"] for f in two)])
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return judged(statement, "Theorem 3.6", None, "no success with two classes")
    figure = f"largest ratio {ratios.max():.5f} in {len(ratios)} inputs (held under 1.01)"
    return judged(statement, "Theorem 3.6", bool(ratios.max() < 1.01), figure)


members = partial(
    grid,
    "{features} inputs, {classes} classes",
    "{features}-{classes}",
    features="features",
    classes="classes",
)
EXPERIMENT = study.define_random("linear", PRESETS, members, compared, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
