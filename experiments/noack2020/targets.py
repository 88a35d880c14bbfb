"""Target saliency maps: computed once per teacher and method, kept in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from experiments.common.experiment import Task
from experiments.common.train import say
from experiments.noack2020.rows import Row
from tfrobust import saliency

__all__ = ["ROBUST", "reference_targets", "targets_of", "teacher_of"]

# the row whose targets cosines are measured against
ROBUST = "ir-r-smg"


def teacher_of(settings: Any, row: Row) -> str:
    """The name of the row whose network supplies a row's maps."""
    return {"r": settings.robust, "nr": "standard"}.get(row.teacher, row.teacher)


def raw_maps(task: Task, row: Row, trained: Callable[..., keras.Model]) -> np.ndarray:
    """A teacher's maps of the true class's logit over the training images, memory-mapped.

    Args:
        task: of the experiment.
        row: of Interpretation Regularization.
        trained: makes the teacher.
    """
    settings, train = task.settings, task.data["train"]
    name = teacher_of(settings, row)
    folder = task.run.folder / "targets" / f"{name.replace('/', '_of_')}-{row.method}"
    seed = settings.seeds[0]
    model = trained(task, Row.of(name), seed)
    if not (folder / "maps.npy").exists():
        say(f"target maps of {Row.of(name).label}: {row.method}")
    options: dict[str, Any] = {}
    if row.method == "smg":
        options = {"sigma": settings.sigma, "samples": settings.samples}
        if settings.smoothgrad == "released":
            options |= {"clip": (0.0, 1.0), "include_clean": True}
    stored = saliency.target_maps(
        folder,
        model,
        *train.arrays,
        method="smoothgrad" if row.method == "smg" else "gradient",
        seed=seed,
        **options,
    )
    return stored.checked(*train.arrays)


def targets_of(
    task: Task,
    row: Row,
    *,
    permuted: float,
    seed: int,
    trained: Callable[..., keras.Model],
) -> np.ndarray:
    """A row's target maps: shuffled once for all epochs, then thresholded.

    Args:
        task: of the experiment.
        row: of Interpretation Regularization.
        permuted: share of a map's values that are shuffled among themselves.
        seed: of the shuffling.
        trained: makes the teacher.
    """
    maps = raw_maps(task, row, trained)
    if permuted:
        maps = saliency.permute(maps, permuted, seed)
    settings = task.settings
    return maps if settings.threshold_after else saliency.threshold(maps, settings.phi)


def reference_targets(task: Task, name: str, trained: Callable[..., keras.Model]) -> np.ndarray:
    """Thresholded maps of a row, unshuffled, against which cosines are measured."""
    maps = raw_maps(task, Row.of(name), trained)
    return saliency.threshold(maps, task.settings.phi)
