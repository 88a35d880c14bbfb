"""A finished cohort: what its run folder holds, read without its models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfrobust.errors import InputError

ATTACK_NAMES = {
    "gradient": "gradient attack",
    "basic_iterative": "l2 basic iterative",
    "carlini_wagner": "Carlini-Wagner l2",
}


class CohortError(InputError):
    """A folder holds no finished cohort."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One classifier of a cohort with everything measured on it."""

    weight: float
    """lambda of double backpropagation."""
    summary: dict[str, float]
    """Accuracies, medians of all measures and of the attacks' distances."""
    alignment: pd.DataFrame
    """`Alignment.to_frame()`, one row an evaluated image."""
    distances: dict[str, pd.DataFrame]
    """`MinimalPerturbation.to_frame()` by attack, rows as in `alignment`; there may be fewer."""
    gradients: np.ndarray
    """Saliency maps of the first evaluated images, (count, *input)."""

    @property
    def degenerate(self) -> bool:
        """Whether the classifier is at most three times better than guessing."""
        return self.summary["test_accuracy"] < 3 / self.summary["classes"]

    def distance(self, attack: str) -> np.ndarray:
        """Distances of an attack on all evaluated images, NaN where it found or tried nothing."""
        values = self.distances[attack]["distance"].to_numpy(float)
        values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        return np.pad(values, (0, len(self.alignment) - len(values)), constant_values=np.nan)


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A finished cohort, read from its run folder."""

    name: str
    """Of the data."""
    lead: str
    members: tuple[Member, ...]
    pictures: np.ndarray
    """(count, height, width, channels) in [0, 1]; the images of the members' gradients."""
    settings: dict[str, Any]
    record: dict[str, Any]
    """What run.json holds."""


def read(folder: str | Path) -> Cohort:
    """A finished cohort from its run folder alone, without its models.

    Raises:
        CohortError: the folder holds no cohort, or one that is not finished.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "run.json").read_text())
        shared = json.loads((folder / "cohort.json").read_text())
        with np.load(folder / "pictures.npz", allow_pickle=False) as archive:
            pictures = archive["pictures"]
        weights = record["settings"]["lambdas"]
    except (OSError, ValueError, KeyError) as error:
        raise CohortError(
            f"{folder} holds no run of a cohort ({type(error).__name__}: {error}). Give the folder "
            "that `python -m experiments.etmann2019.mnist` or `.imagenet` wrote."
        ) from error
    try:
        members = tuple(_read_member(folder / place_of(weight), weight) for weight in weights)
    except (OSError, ValueError, KeyError) as error:
        raise CohortError(
            f"the run in {folder} is not finished ({error}). Run it again with the same settings: "
            "it goes on where it stopped."
        ) from error
    return Cohort(shared["name"], shared["lead"], members, pictures, record["settings"], record)


def _read_member(place: Path, weight: float) -> Member:
    with np.load(place / "gradients.npz", allow_pickle=False) as archive:
        gradients = archive["gradients"]
    return Member(
        weight=weight,
        summary=json.loads((place / "summary.json").read_text()),
        alignment=pd.read_parquet(place / "alignment.parquet"),
        distances={
            path.stem.removeprefix("attack-"): pd.read_parquet(path)
            for path in sorted(place.glob("attack-*.parquet"), key=_order)
        },
        gradients=gradients,
    )


def _order(path: Path) -> int:
    name = path.stem.removeprefix("attack-")
    return list(ATTACK_NAMES).index(name) if name in ATTACK_NAMES else len(ATTACK_NAMES)


def place_of(weight: float) -> str:
    """Where a member's files lie in its run folder."""
    return f"models/lambda-{weight:g}"
