"""Random linear classifiers: Theorem 3.6 against FGS and FGV (Table 3.1, Figure 3.2).

python -m experiments.peck2017.linear --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import reference_models
from experiments.common import checks
from experiments.common.claims import judged
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, study
from experiments.peck2017.comparison import compare, summary
from tfrobust.commands import run
from tfrobust.report import Claim

# wide enough not to bind: classifiers and inputs are standard normal
VALUE_RANGE = (-50.0, 50.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random classifiers and inputs, all standard normal."""

    features: tuple[int, ...] = (2, 20, 200)
    """Numbers of inputs."""
    classes: tuple[int, ...] = (2, 5)
    """Numbers of classes; every pair with `features` is one classifier."""
    inputs: int = 100
    """Random inputs of each classifier."""
    seed: int = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(),
    "reduced": Settings(features=(2, 10, 100, 1000), classes=(2, 10), inputs=1000),
    "paper": Settings(features=(2, 10, 100, 1000), classes=(2, 10, 100), inputs=10_000),
}


def compared(features: int, classes: int, settings: Settings) -> pd.DataFrame:
    """Bounds and attacks for one random classifier."""
    rng = np.random.default_rng((settings.seed, features, classes))
    model = reference_models.build("linear", input_shape=(features,), classes=classes)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    x = rng.normal(size=(settings.inputs, features)).astype(np.float32)
    steps = {"max_epsilon": 50.0, "steps": 30}
    reach = {"max_epsilon": 50.0 * features**0.5, "steps": 30}
    attacks = {"fast_gradient_sign": steps, "fast_gradient_value": reach}
    return compare(model, x, VALUE_RANGE, attacks, tighten=False)


def members(settings: Settings) -> list[Member]:
    """One classifier for every pair of numbers of inputs and classes."""
    return [
        Member(
            f"{features} inputs, {classes} classes",
            f"{features}-{classes}",
            {"features": features, "classes": classes},
        )
        for features in settings.features
        for classes in settings.classes
    ]


def steps(task: Task, member: Member) -> Iterator[None]:
    """Bound and attack."""
    task.run.frame_step(
        f"{member.folder}/{study.BOUNDED}",
        lambda: compared(**member.settings, settings=task.settings),
    )
    yield


def report(task: Task, progress: Progress) -> Report:
    """Table 3.1 and Figure 3.2."""
    frames = {member.name: study.frame_of(task, member) for member in progress.finished}
    drawings = []
    if frames:
        first, last = next(iter(frames)), list(frames)[-1]
        ends = {first: frames[first], last: frames[last]}
        drawings = [
            Drawing(
                "Figure 3.2",
                "FGS and FGV distances over Theorem 3.6's bound, which is the exact distance of a "
                "linear classifier: FGV reaches it with two classes, FGS does not in many "
                "dimensions.",
                "figure3.2",
                partial(figures.scatter, ends),
            ),
            Drawing(
                "Figure 3.2, histograms",
                f"{last}.",
                "figure3.2-histograms",
                partial(figures.histograms, frames[last], last),
            ),
        ]
    return study.report_of(
        task,
        title="random linear classifiers",
        lead=f"{len(frames)} classifiers with standard normal weights, {task.settings.inputs:,} "
        "standard normal inputs each.",
        tables=[Table("Table 3.1", study.ABOUT, summary(frames, "3.1"))],
        drawings=drawings,
        claims=[*claims.bounds_hold(frames, "Theorem 3.6"), reached(frames)],
    )


def reached(frames: dict[str, pd.DataFrame]) -> Claim:
    """With two classes the loss gradient points to the boundary: FGV finds the exact distance."""
    two = [frame for name, frame in frames.items() if name.endswith(" 2 classes")]
    if not two:
        return judged("FGV reaches the bound", "Theorem 3.6", None, "no binary one")
    ratios = np.concatenate([f["fast_gradient_value"] / f["printed"] for f in two])
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return judged("FGV reaches the bound", "Theorem 3.6", None, "no success")
    largest = float(ratios.max())
    return judged(
        "With two classes FGV's smallest perturbation has the length of the bound",
        "Theorem 3.6",
        largest < 1.01,
        f"largest ratio {largest:.5f} in {len(ratios)} inputs (held under 1.01)",
    )


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "features", "classes")
    checks.at_least(settings, 1, "features", "inputs")
    checks.at_least(settings, 2, "classes")
    checks.at_least(settings, 0, "seed")


EXPERIMENT = study.define(
    "linear",
    PRESETS,
    check_settings=check_settings,
    members=members,
    steps=steps,
    report=report,
    complete=(study.BOUNDED,),
)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line; the page's path."""
    return execute(EXPERIMENT, arguments)


if __name__ == "__main__":
    run(main)
