"""The settings that results of `tfrobust measure` depend on, and the results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from tfrobust import alignment
from tfrobust.alignment import check_sketch
from tfrobust.commands.measure.settings import Resolved, Settings
from tfrobust.commands.subject import Subject, load_subject
from tfrobust.evaluation import search_for

__all__ = ["Measured", "prepare"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything measured on a subject."""

    table: pd.DataFrame
    """`Alignment.to_frame()` with the file names first."""
    attack: pd.DataFrame | None
    """`MinimalPerturbation.to_frame()` of the first images, with the file names first."""
    saliency: dict[str, np.ndarray] | None
    """`rows` of the pictured images in `table`, and their `gradients`."""

    @property
    def measures(self) -> alignment.Alignment:
        """The table as `Alignment`."""
        return alignment.Alignment.from_frame(self.table)


def prepare(command: Settings) -> tuple[Resolved, Subject]:
    """The settings with all defaults resolved, and the model with its input.

    Raises:
        TfrobustError: see `load_subject`.
    """
    check_sketch(command.directions, command.failure_probability, "failure_probability")
    subject = load_subject(command, command.images)
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(Settings)}
    resolved = {
        "weights": subject.weights,
        "preprocessing": subject.preprocessing.name,
        "search": search_for(subject.classes, command.search),
    }
    settings = Resolved(
        **given | resolved,
        weights_sha256=subject.weights_sha256,
        images_sha256=subject.images_sha256,
    )
    return settings, subject
