"""ROAR and KAR of adversarially trained networks (Sections 3.2 and 3.3, Figures 4 and 5).

python -m experiments.kim2019.retrain --preset demo
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
import pandas as pd

from experiments.common.checks import DISTINCT, Count, NotNegative, Rule
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Report
from experiments.kim2019 import retrain_page, study
from experiments.kim2019.adversaries import ADVERSARY, STANDARD, adversary_names
from tfrobust import CrossEntropy, evaluate, retraining, saliency
from tfrobust.commands import run
from tfrobust.errors import InputError
from tfrobust.retraining import RetrainingScore
from tfrobust.training import RepeatedFit

TESTED, SCORES, CURVES = "tested.json", "scores.parquet", "curves.parquet"
# the strongest attacks of the sweeps, to which strengths are relative
STRONGEST = {"l2": 1.6, "linf": 0.04}

Attribution = Literal["G", "GX", "G-direction", "GX-direction"]
Metric = Literal["roar", "kar"]


def _fraction(value: float) -> str | None:
    return None if 0 < value < 1 else f"must lie between 0 and 1, got {value:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(study.TrainingSettings):
    """Classifiers, attributions, and what is retrained."""

    adversaries: Annotated[tuple[Annotated[str, ADVERSARY], ...], DISTINCT]
    """Of training; standard training first."""
    test_examples: Count | None = None
    """The first of the test set, on which retrained networks are evaluated; None for all."""
    attributions: Annotated[tuple[Attribution, ...], DISTINCT] = ("G", "GX")
    """Loss gradient and gradient times input; -direction: a multiple that does not underflow."""
    metrics: Annotated[tuple[Metric, ...], DISTINCT] = ("roar", "kar")
    """Remove and retrain, keep and retrain."""
    fractions: Annotated[tuple[Annotated[float, Rule(_fraction)], ...], DISTINCT] = (
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
    )
    """Shares of pixels that are removed or kept."""
    retrains: Count = 3
    """Networks per fraction and attribution."""
    random_retrains: Count = 3
    """Networks per fraction with random pixels."""
    retrain_epochs: Count = 20
    """Passes over the occluded images."""
    noise: NotNegative = 1e-8
    """Added to G and GX, as in the released code, where it can exceed the gradient; 0: none."""


def _sweep(strengths: tuple[float, ...], objectives: tuple[str, ...]) -> tuple[str, ...]:
    names = [STANDARD]
    for objective in objectives:
        for norm, strongest in STRONGEST.items():
            radii = tuple(round(strongest * strength, 6) for strength in strengths)
            names += adversary_names(norm, radii, objective)
    return tuple(names)


PRESETS = {
    "demo": Settings(
        dataset="digits",
        adversaries=(STANDARD, "l2-1-xent", "l2-2-xent"),
        filters=(8, 8),
        dense=32,
        epochs=4,
        training_steps=3,
        test_examples=200,
        fractions=(0.5, 0.9),
        retrains=1,
        random_retrains=2,
        retrain_epochs=3,
        noise=0.0,
    ),
    "reduced": Settings(
        dataset="cifar10",
        train_examples=10_000,
        test_examples=2000,
        adversaries=_sweep((0.25, 0.5, 0.75, 1.0), ("xent",)),
        filters=(16, 16, 32, 32),
        dense=128,
        epochs=8,
        training_steps=7,
        attributions=("G", "GX", "G-direction", "GX-direction"),
        retrains=1,
        retrain_epochs=8,
    ),
    "paper": Settings(
        dataset="cifar10",
        adversaries=_sweep(tuple(k / 20 for k in range(1, 21)), ("xent", "cw")),
        epochs=20,
    ),
}


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """The first adversary is standard training, whose accuracy closes all curves."""
    if settings.adversaries[0] != STANDARD:
        raise InputError(f"--adversaries must begin with {STANDARD}")


def load(settings: Settings, preset: str, data_dir: Path | None) -> dict[str, Any]:
    """Images in [-1, 1]."""
    splits = study.load_splits(settings, preset, data_dir)
    test = splits["test"]
    if settings.test_examples is not None:
        splits["test"] = test.take(min(settings.test_examples, len(test)))
    return splits


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train; retrain on occluded images, a curve after the other."""
    model = study.classifier(task, member, member.name)
    yield
    settings, test = task.settings, task.data["test"]
    task.run.json_step(
        f"{member.folder}/{TESTED}", lambda: evaluate(model, *test.arrays, batch_size=500)
    )
    yield
    if all(task.run.has(f"{member.folder}/{file}") for file in (SCORES, CURVES)):
        return
    training = _training(task)
    accuracy = task.run.read_json(f"{STANDARD}/{TESTED}")["accuracy"]
    arrays = task.data["train"].arrays, test.arrays
    shares = tuple(sorted({round(x, 12) for f in settings.fractions for x in (f, 1 - f)}))
    baseline = retraining.random_baseline(
        training,
        *arrays,
        fractions=shares,
        retrains=settings.random_retrains,
        unoccluded=accuracy,
        seed=settings.seed,
        folder=task.run.folder / "random",
    )
    rows, curves = [], [baseline.to_frame().assign(attribution="random")]
    for attribution in settings.attributions:
        maps = tuple(attributed(model, images, attribution) for images, _ in arrays)
        for metric in settings.metrics:
            score = getattr(retraining, metric)(
                training,
                *arrays,
                maps,
                baseline=baseline,
                fractions=settings.fractions,
                retrains=settings.retrains,
                unoccluded=accuracy,
                noise=0.0 if attribution.endswith("direction") else settings.noise,
                seed=settings.seed,
                folder=task.run.folder / member.folder / attribution,
            )
            rows.append(_row(score, metric, attribution))
            curves.append(score.curve.to_frame().assign(attribution=attribution))
            yield
    table = f"{member.folder}/{SCORES}"
    task.run.frame_step(f"{member.folder}/{CURVES}", lambda: pd.concat(curves, ignore_index=True))
    task.run.frame_step(table, lambda: pd.DataFrame(rows))
    yield


def attributed(model: keras.Model, images: np.ndarray, attribution: Attribution) -> np.ndarray:
    """Attribution of every pixel by the cross-entropy of the predicted class, (count, h, w)."""
    name, _, direction = attribution.partition("-")
    method: Callable[..., np.ndarray] = (
        saliency.gradient_times_input if name == "GX" else saliency.gradient
    )
    maps = method(model, images, of="log_odds" if direction else "loss", batch_size=500)
    return retraining.pixel_attribution(maps)


def _row(score: RetrainingScore, metric: str, attribution: str) -> dict[str, Any]:
    """One score; `curve_error` is without the baseline's part, which all scores share."""
    return {
        "metric": metric,
        "attribution": attribution,
        "mu": score.mu,
        "standard_error": score.standard_error,
        "curve_error": score.curve.error_with(_spread(score)),
    }


def _spread(score: RetrainingScore) -> np.ndarray:
    """Of single retrains; the random baseline's where there is one per fraction."""
    if score.curve.accuracies.shape[1] > 1:
        return score.curve.spread
    return score.baseline.at(score.curve.removed).spread


def _training(task: Task) -> RepeatedFit:
    """What all retrains share: one compiled step."""
    settings, train = task.settings, task.data["train"]
    if "training" not in task.data:
        task.data["training"] = RepeatedFit(
            functools.partial(study.network, settings, train.images.shape[1:], train.classes),
            CrossEntropy(),
            optimizer=functools.partial(
                keras.optimizers.Adam, settings.learning_rate, epsilon=1e-8
            ),
            epochs=settings.retrain_epochs,
            batch_size=settings.batch_size,
        )
    return task.data["training"]


def report(task: Task, progress: Progress) -> Report:
    """Figures 4 and 5."""
    tested = {m.name: task.run.read_json(f"{m.folder}/{TESTED}") for m in progress.finished}
    tables: dict[str, dict[str, pd.DataFrame]] = {
        file: {
            m.name: task.run.frame_step(f"{m.folder}/{file}", pd.DataFrame)
            for m in progress.finished
        }
        for file in (SCORES, CURVES)
    }
    return retrain_page.report(task, tested, tables[SCORES], tables[CURVES], STRONGEST)


members = partial(grid, "{adversary}", "{adversary}", adversary="adversaries")
EXPERIMENT = Experiment(
    "kim2019-retrain",
    PRESETS,
    study.SCALES,
    load,
    members,
    steps,
    (TESTED, CURVES, SCORES),
    report,
    check_settings,
    distributed=False,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
