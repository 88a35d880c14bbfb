"""What loss gradients of standard and trained networks look like (Figure 6).

python -m experiments.kim2019.gradients --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Count, Index
from experiments.common.experiment import Experiment, Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.common.train import save_model, say
from experiments.kim2019 import claims, figures, study
from experiments.kim2019.adversaries import ADVERSARY, STANDARD
from tfrobust import evaluate, saliency
from tfrobust.commands import run
from tfrobust.errors import MissingFileError

MAPS, MEASURED, TESTED = "maps.npz", "measured.parquet", "tested.json"
# of Figure 6, by data set: positions in the test set
SHOWN = {"cifar10": (2, 10, 28), "fashion_mnist": (1, 3, 7)}
_MNIST_SHOWN = (1, 3, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(study.TrainingSettings):
    """Classifiers, and the test images whose gradients are measured."""

    adversaries: Annotated[tuple[Annotated[str, ADVERSARY], ...], DISTINCT]
    """Of training; Figure 6 has the strongest of each norm."""
    measured: Count = 1000
    """Test images."""
    shown: Annotated[tuple[Index, ...], DISTINCT] | None = None
    """Positions in the test set; None for the paper's."""
    networks: str | None = None
    """Folder of a finished run of `manifold` with the same training settings, whose classifiers are
    taken; None to train them here."""


_STRONGEST = (STANDARD, "linf-0.2-xent", "l2-4-xent")
PRESETS = {
    "demo": Settings(
        **study.DIGITS, adversaries=(STANDARD, "linf-0.1-xent", "l2-2-xent"), measured=200
    ),
    "reduced": Settings(**study.REDUCED_MNIST, adversaries=_STRONGEST),
    "paper": Settings(**study.MNIST, adversaries=_STRONGEST, measured=10_000),
}


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """The classifiers that are taken from another run are there."""
    if settings.networks is not None:
        for name in settings.adversaries:
            path = Path(settings.networks) / name / "model.keras"
            if not path.is_file():
                raise MissingFileError(
                    f"--networks {settings.networks} has no {name}/model.keras: give the folder of "
                    "a finished run of experiments.kim2019.manifold with that adversary"
                )


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train or copy; gradients of the images that are shown; measures of many."""
    model = _network(task, member)
    yield
    settings, test = task.settings, task.data["test"]
    task.run.json_step(
        f"{member.folder}/{TESTED}", lambda: evaluate(model, *test.arrays, batch_size=500)
    )
    # -XEnt of the predicted class, as in the released code
    shown = test.images[list(shown_of(settings))]
    task.run.arrays_step(
        f"{member.folder}/{MAPS}", lambda: {"maps": -saliency.gradient(model, shown, of="loss")}
    )
    yield
    task.run.frame_step(
        f"{member.folder}/{MEASURED}", lambda: _measures(model, test.images[: settings.measured])
    )
    yield


def _network(task: Task, member: Member) -> keras.Model:
    """The classifier, trained here or copied from another run."""
    file = f"{member.folder}/model.keras"
    if task.settings.networks is not None and not task.run.has(file):
        source = Path(task.settings.networks).resolve() / member.name / "model.keras"
        say(f"{member.name}: copied from {source.parent}")
        record = {**reference_models.provenance(source), "copied from": str(source)}
        save_model(task.run, file, reference_models.load(source), record)
    return study.classifier(task, member, member.name)


def shown_of(settings: Settings) -> tuple[int, ...]:
    """Positions of the images in Figure 6."""
    if settings.shown is not None:
        return settings.shown
    return SHOWN.get(settings.dataset, _MNIST_SHOWN)


def _measures(model: keras.Model, images: np.ndarray) -> pd.DataFrame:
    """Sparsity and roughness of each image's gradient, summed over channels.

    Of the gradient itself, and of a multiple of it that does not underflow.
    """
    columns: dict[str, np.ndarray] = {}
    for name, of in (("gradient", "loss"), ("direction", "log_odds")):
        maps = saliency.gradient(model, images, of=of).astype(np.float64).sum(axis=-1)
        columns[f"gini, {name}"] = gini(maps)
        columns[f"variation, {name}"] = total_variation(maps)
    return pd.DataFrame(columns)


def gini(maps: np.ndarray) -> np.ndarray:
    """Gini index of absolute values: 0 for equal ones, near 1 where few are not zero.

    Args:
        maps: (count, height, width).

    Returns:
        (count,); NaN for a map of zeros.

    Source: Hurley and Rickard 2009, Comparing measures of sparsity.
    """
    values = np.sort(np.abs(maps).reshape(len(maps), -1), axis=1)
    size = values.shape[1]
    total = values.sum(axis=1)
    ranks = (size - np.arange(size) - 0.5) / size
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, 1 - 2 * (values @ ranks) / total, np.nan)


def total_variation(maps: np.ndarray) -> np.ndarray:
    """Sum of |differences of neighbours| over twice the sum of |values|: large where rough.

    Args:
        maps: (count, height, width).

    Returns:
        (count,); NaN for a map of zeros.
    """
    total = np.abs(maps).sum(axis=(1, 2))
    differences = sum(np.abs(np.diff(maps, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, differences / (2 * total), np.nan)


def report(task: Task, progress: Progress) -> Report:
    """Figure 6."""
    frames = {
        member.name: task.run.frame_step(f"{member.folder}/{MEASURED}", pd.DataFrame)
        for member in progress.finished
    }
    maps = {
        member.name: partial(task.run.arrays_step, f"{member.folder}/{MAPS}", dict)
        for member in progress.finished
    }
    tested = {
        member.name: task.run.read_json(f"{member.folder}/{TESTED}") for member in progress.finished
    }
    return Report(
        title=f"Kim 2019: loss gradients, {task.settings.dataset}",
        lead=f"{study.SCALES[task.preset]} Gradients of minus the cross-entropy of the predicted "
        "class, summed over channels.",
        tables=[Table("Gradients", _ABOUT, _table(frames, tested))],
        drawings=[_figure(task, maps)] if maps else [],
        claims=claims.gradients(frames),
    )


_ABOUT = (
    "Medians over test images. Gini index of absolute values: larger is sparser. Variation: "
    "absolute differences of neighbours per absolute value: smaller is smoother. Direction: a "
    "multiple of the gradient that does not underflow. Zero: images whose gradient underflows."
)


def _table(
    frames: Mapping[str, pd.DataFrame], tested: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "training": name,
            "test accuracy": tested[name]["accuracy"],
            **{column: frame[column].median() for column in frame},
            "zero": int(frame["gini, gradient"].isna().sum()),
        }
        for name, frame in frames.items()
    )


def _figure(task: Task, maps: Mapping[str, Any]) -> Drawing:
    def draw() -> Any:
        test, positions = task.data["test"], list(shown_of(task.settings))
        return figures.gradients(
            test.images[positions],
            test.labels[positions],
            {name: read()["maps"] for name, read in maps.items()},
        )

    text = (
        "Values are capped at the 0.5th and 99.5th percentile of each map; blue is negative, red "
        "positive, on a scale symmetric about zero."
    )
    return Drawing("Figure 6", text, "figure6", draw)


members = partial(grid, "{adversary}", "{adversary}", adversary="adversaries")
EXPERIMENT = Experiment(
    "kim2019-gradients",
    PRESETS,
    study.SCALES,
    study.load_splits,
    members,
    steps,
    (TESTED, MAPS, MEASURED),
    report,
    check_settings,
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
