"""Random MLPs: Theorem 4.2 and certified bounds against FGS (Table 4.2, Figure 4.1).

python -m experiments.peck2017.random_mlps --preset demo
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
from experiments.peck2017.comparison import compare, fgs_and, summary
from tfrobust.commands import run

VALUE_RANGE = (-50.0, 50.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random networks and inputs."""

    features: int = 10
    """Inputs."""
    classes: int = 3
    """Logits."""
    width: int = 10
    """Units of each hidden layer."""
    depths: tuple[int, ...] = (1, 2)
    """Numbers of hidden layers."""
    activations: tuple[str, ...] = ("tanh", "sigmoid", "relu")
    """Of the hidden layers."""
    networks: int = 3
    """Random networks of each kind."""
    inputs: int = 30
    """Standard normal inputs of each network."""
    attack: str = "deepfool"
    """A second attack beside FGS; Carlini-Wagner is coarse in a box as wide as these."""
    seed: int = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(depths=(1, 2), activations=("tanh", "relu"), networks=2, attack="none"),
    "reduced": Settings(depths=(1, 2, 3), networks=10, inputs=100),
    "paper": Settings(depths=(1, 2, 3, 4, 5), width=50, networks=100, inputs=1000),
}


def compared(activation: str, depth: int, settings: Settings) -> pd.DataFrame:
    """Bounds and attacks for several random networks of one kind."""
    model = reference_models.build(
        "mlp",
        input_shape=(settings.features,),
        hidden=(settings.width,) * depth,
        classes=settings.classes,
        activation=activation,
    )
    attacks = fgs_and(settings.attack, max_epsilon=20.0)
    parts = []
    for number in range(settings.networks):
        rng = np.random.default_rng((settings.seed, number, depth))
        for weight in model.trainable_variables:
            fan_in = weight.shape[0] if len(weight.shape) == 2 else 1.0
            weight.assign(rng.normal(size=weight.shape) / fan_in**0.5)
        x = rng.normal(size=(settings.inputs, settings.features)).astype(np.float32)
        frame = compare(model, x, VALUE_RANGE, attacks)
        frame.insert(0, "network", number)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def members(settings: Settings) -> list[Member]:
    """One kind of networks for every activation and depth."""
    return [
        Member(
            f"{activation}, {depth} hidden",
            f"{activation}-{depth}",
            {"activation": activation, "depth": depth},
        )
        for activation in settings.activations
        for depth in settings.depths
    ]


def steps(task: Task, member: Member) -> Iterator[None]:
    """Bound and attack."""
    task.run.frame_step(
        f"{member.folder}/{study.BOUNDED}",
        lambda: compared(**member.settings, settings=task.settings),
    )
    yield


def report(task: Task, progress: Progress) -> Report:
    """Table 4.2 and Figure 4.1."""
    settings = task.settings
    frames = {member.name: study.frame_of(task, member) for member in progress.finished}
    scatter = Drawing(
        "Figure 4.1",
        "Each input's bounds against the smallest distance found; above the dashed line a bound is "
        "violated.",
        "figure4.1",
        partial(figures.scatter, dict(list(frames.items())[:4])),
    )
    return study.report_of(
        task,
        title="random MLPs",
        lead=f"{settings.networks} networks of each kind, {settings.width} units per layer, normal "
        f"weights with variance 1 / inputs, {settings.inputs} standard normal inputs each.",
        tables=[Table("Table 4.2", study.ABOUT, summary(frames, "4.2"))],
        drawings=[scatter] if frames else [],
        claims=claims.bounds_hold(frames, "Theorem 4.2"),
    )


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    common_checks.distinct(settings, "depths", "activations")
    common_checks.at_least(settings, 1, "features", "width", "depths", "networks", "inputs")
    common_checks.at_least(settings, 2, "classes")
    common_checks.at_least(settings, 0, "seed")
    common_checks.one_of(settings, checks.ACTIVATIONS, "activations")
    common_checks.one_of(settings, checks.SECOND_ATTACKS, "attack")


EXPERIMENT = study.define(
    "random-mlps",
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
