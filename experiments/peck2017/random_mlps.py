"""Random MLPs: Theorem 4.2 and certified bounds against FGS (Table 4.2, Figure 4.1).

python -m experiments.peck2017.random_mlps --preset demo
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Seed, at_least
from experiments.common.experiment import Task, execute
from experiments.common.members import Progress, grid
from experiments.common.page import Report, Table
from experiments.peck2017 import claims, figures, study
from experiments.peck2017.checks import Activation, SecondAttack
from experiments.peck2017.comparison import compare, fgs_and, summary
from tfrobust.commands import run


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random networks and inputs."""

    features: Count = 10
    """Inputs."""
    classes: Annotated[int, at_least(2)] = 3
    """Logits."""
    width: Count = 10
    """Units of each hidden layer."""
    depths: Annotated[tuple[Count, ...], DISTINCT] = (1, 2)
    """Numbers of hidden layers."""
    activations: Annotated[tuple[Activation, ...], DISTINCT] = ("tanh", "sigmoid", "relu")
    """Of the hidden layers."""
    networks: Count = 3
    """Random networks of each kind."""
    inputs: Count = 30
    """Standard normal inputs of each network."""
    attack: SecondAttack = "deepfool"
    """A second attack beside FGS; Carlini-Wagner is coarse in a box as wide as these."""
    seed: Seed = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(depths=(1, 2), activations=("tanh", "relu"), networks=2, attack="none"),
    "reduced": Settings(depths=(1, 2, 3), networks=10, inputs=100),
    "paper": Settings(depths=(1, 2, 3, 4, 5), width=50, networks=100, inputs=1000),
}


def compared(settings: Settings, activation: str, depth: int) -> pd.DataFrame:
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
        frame = compare(model, x, study.WIDE, attacks)
        frame.insert(0, "network", number)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def report(task: Task, progress: Progress) -> Report:
    """Table 4.2 and Figure 4.1."""
    settings = task.settings
    frames = {member.name: study.frame_of(task, member) for member in progress.finished}
    return study.report_of(
        task,
        title="random MLPs",
        lead=f"{settings.networks} networks of each kind, {settings.width} units per layer, normal "
        f"weights with variance 1 / inputs, {settings.inputs} standard normal inputs each.",
        tables=[Table("Table 4.2", study.ABOUT, summary(frames, "4.2"))],
        drawings=figures.scatter_of(frames, "Figure 4.1", "figure4.1"),
        claims=claims.bounds_hold(frames, "Theorem 4.2"),
    )


NAME, FOLDER = "{activation}, {depth} hidden", "{activation}-{depth}"
members = partial(grid, NAME, FOLDER, activation="activations", depth="depths")
EXPERIMENT = study.define_random("random-mlps", PRESETS, members, compared, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
