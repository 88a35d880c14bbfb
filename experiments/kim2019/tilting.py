"""Boundary tilting on two Gaussians (Section 2.2, Figure 3b).

python -m experiments.kim2019.tilting --preset paper
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, NotNegative, Positive, Seed
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.common.train import train_or_load
from experiments.kim2019 import claims, figures
from experiments.kim2019.adversaries import ADVERSARY, Adversary, objective_of, threat_model
from experiments.kim2019.boundary import boundary_of
from experiments.kim2019.published import TILT_READ_OFF
from experiments.kim2019.study import SCALES
from tfrobust import data, evaluate, pgd
from tfrobust.commands import run

STEPS = 40
STEP_SIZES = {"l2": 2.0, "linf": 0.02}
MEASURED, POINTS = "measured.json", "points.npz"
# the paper's names of the three networks
LEVELS = {"standard": "standard", "l2-0.25-xent": "weak", "l2-0.5-xent": "strong"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Networks, seeds and the attack that is drawn."""

    adversaries: Annotated[tuple[Annotated[str, ADVERSARY], ...], DISTINCT] = tuple(LEVELS)
    """Of training: standard, weak and strong."""
    seeds: Annotated[tuple[Seed, ...], DISTINCT] = (0, 1, 2, 3, 4)
    """Of points, weights and the order of examples."""
    points: Count = 3000
    """Per class."""
    epochs: Count = 10
    """Passes over the points."""
    learning_rate: Positive = 1e-3
    """Of Adam, batches of 100."""
    epsilon: Positive = 1.0
    """Of the l2 attacks that are shown and measured."""
    floor: NotNegative = 1e-8
    """The gradient is divided by no less, as in the released code; 0: no underflow."""


PRESETS = {
    "demo": Settings(seeds=(0,)),
    "reduced": Settings(),
    "paper": Settings(seeds=tuple(range(10))),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[int, data.Dataset]:
    """The points of every seed, which are trained on and attacked, as in the released code."""
    return {seed: data.kim_toy(seed=seed, count=settings.points) for seed in settings.seeds}


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train; measure the boundary's tilt and where attacks lead."""
    settings: Settings = task.settings
    seed, adversary = member.settings["seed"], Adversary.of(member.settings["adversary"])
    points: data.Dataset = task.data[seed]
    attack = partial(threat_model, steps=STEPS, step_sizes=STEP_SIZES, floor=settings.floor)
    threat = adversary.norm and attack(adversary.norm, adversary.epsilon, adversary.objective)
    model = train_or_load(
        task.run,
        member.folder,
        partial(reference_models.build, "kim_toy_mlp"),
        points.arrays,
        objective_of(threat),
        name=member.name,
        optimizer=keras.optimizers.Adam(settings.learning_rate, epsilon=1e-8),
        epochs=settings.epochs,
        batch_size=min(100, len(points)),
        seed=seed,
        provenance={"data": dataclasses.asdict(points.provenance)},
    )
    yield

    def attacked() -> dict[str, np.ndarray]:
        found = pgd(
            model,
            points.images,
            points.labels,
            norm=2,
            epsilon=settings.epsilon,
            step_size=STEP_SIZES["l2"],
            steps=STEPS,
            floor=settings.floor,
            stop="last",
            value_range=points.value_range,
            batch_size=1000,
        )
        boundary = boundary_of(model)
        return {
            "points": points.images,
            "labels": points.labels,
            "adversarials": np.clip(points.images + found.perturbation, *points.value_range),
            "success": found.success,
            "axis": boundary.axis,
            "lead": boundary.lead,
        }

    arrays = task.run.arrays_step(f"{member.folder}/{POINTS}", attacked)
    yield
    task.run.json_step(
        f"{member.folder}/{MEASURED}",
        lambda: {
            "accuracy": evaluate(model, *points.arrays)["accuracy"],
            "accuracy on new points": evaluate(
                model, *data.kim_toy("test", seed=seed, count=settings.points).arrays
            )["accuracy"],
            "tilt": boundary_of(model).angle_to(data.kim_toy_low_variance_direction()),
            "distance": distance_to_other_class(arrays),
            "success": float(arrays["success"].mean()),
        },
    )
    yield


def distance_to_other_class(arrays: dict[str, np.ndarray]) -> float:
    """Mean distance of adversarials from the long axis of the class that they are moved to.

    The axis passes through that class's mean, along its direction of largest variance.
    """
    distances = []
    for label in (0, 1):
        other = arrays["points"][arrays["labels"] != label]
        centred = other - other.mean(axis=0)
        low_variance = np.linalg.eigh(centred.T @ centred)[1][:, 0]
        moved = arrays["adversarials"][arrays["labels"] == label]
        distances.append(np.abs((moved - other.mean(axis=0)) @ low_variance))
    return float(np.concatenate(distances).mean())


def report(task: Task, progress: Progress) -> Report:
    """Figure 3b, its angles, and what they say."""
    rows = [_row(task, member) for member in progress.finished]
    frame = pd.DataFrame(rows)
    return Report(
        title="Kim 2019: boundary tilting",
        lead=f"{SCALES[task.preset]} Two Gaussians, {task.settings.points} points each; attacks of "
        f"l2 radius {task.settings.epsilon:g}. Angles in degrees, distances in units of the "
        "square [-1, 1].",
        tables=_tables(frame),
        drawings=_drawings(task, progress.finished),
        claims=claims.tilting(frame, list(task.settings.adversaries)),
    )


def _row(task: Task, member: Member) -> dict[str, Any]:
    measured = task.run.read_json(f"{member.folder}/{MEASURED}")
    return {**member.settings, **measured}


def _tables(frame: pd.DataFrame) -> list[Table]:
    if frame.empty:
        return []
    groups = frame.groupby("adversary", sort=False)
    summary = pd.DataFrame(
        {
            "training": name,
            "seeds": len(group),
            "accuracy, least": group["accuracy"].min(),
            "tilt": group["tilt"].mean(),
            "tilt, spread": group["tilt"].std(ddof=1),
            "tilt, published (read off)": TILT_READ_OFF.get(LEVELS.get(name, ""), np.nan),
            "distance": group["distance"].mean(),
            "distance, spread": group["distance"].std(ddof=1),
        }
        for name, group in groups
    )
    text = (
        "Tilt: between the decision boundary and the low-variance direction of the data. Distance: "
        "of adversarials from the long axis of the other class. Means over seeds, and sample "
        "standard deviations."
    )
    return [
        Table("Boundaries", text, summary),
        Table("Networks", "One row per network.", frame),
    ]


def _drawings(task: Task, members: tuple[Member, ...]) -> list[Drawing]:
    first = [member for member in members if member.settings["seed"] == task.settings.seeds[0]]
    if not first:
        return []

    def draw() -> Any:
        panels = {
            member.settings["adversary"]: task.run.arrays_step(f"{member.folder}/{POINTS}", dict)
            for member in first
        }
        return figures.boundaries(panels)

    text = (
        "Points of both classes, the regions of both decisions, and adversarials of the points of "
        "class 1 (the caption of Figure 3b says class 2; its arrows start in class 1)."
    )
    return [Drawing("Figure 3b", text, "figure3b", draw)]


members = partial(
    grid,
    "{adversary}, seed {seed}",
    "{adversary}/seed{seed}",
    adversary="adversaries",
    seed="seeds",
)
EXPERIMENT = Experiment(
    "kim2019-tilting",
    PRESETS,
    SCALES,
    load,
    members,
    steps,
    (POINTS, MEASURED),
    report,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
