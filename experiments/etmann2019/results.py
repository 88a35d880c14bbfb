"""A cohort's results: what its run folder holds, read without its models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import members
from tfrobust import alignment
from tfrobust.errors import InputError

ATTACK_NAMES = {
    "gradient": "gradient attack",
    "basic_iterative": "l2 basic iterative",
    "carlini_wagner": "Carlini-Wagner l2",
}
COMPLETE = ("summary.json", "gradients.npz")
"""Files of a finished classifier."""


class CohortError(InputError):
    """A folder holds no finished cohort."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One classifier of a cohort with everything measured on it."""

    settings: Mapping[str, Any]
    """What tells it from the others: lambda of double backpropagation."""
    summary: dict[str, float]
    """Accuracies, medians of all measures and of the attacks' distances."""
    alignment: pd.DataFrame
    """`Alignment.to_frame()`, one row per evaluated image."""
    distances: dict[str, pd.DataFrame]
    """`MinimalPerturbation.to_frame()` by attack, rows as in `alignment`; there may be fewer."""
    gradients: np.ndarray
    """Saliency maps of the first evaluated images, (count, *input)."""

    @property
    def weight(self) -> float:
        """lambda of double backpropagation."""
        return self.settings["lambda"]

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
    """A cohort, read from its run folder."""

    name: str
    """Of the data."""
    lead: str
    members: tuple[Member, ...]
    """Those that are finished."""
    pictures: np.ndarray
    """(count, height, width, channels) in [0, 1]; the images of the members' gradients."""
    settings: dict[str, Any]
    record: dict[str, Any]
    """What run.json holds."""


def summarize(
    test: Mapping[str, float], table: pd.DataFrame | None, distances: Mapping[str, pd.DataFrame]
) -> dict[str, Any]:
    """Accuracy, medians of the measures, and medians and success of the attacks.

    Args:
        test: loss and accuracy on the evaluation set.
        table: `Alignment.to_frame()`, once it is measured.
        distances: `MinimalPerturbation.to_frame()` of the attacks that were made.
    """
    summary: dict[str, Any] = {"test_accuracy": test["accuracy"], "test_loss": test["loss"]}
    if table is not None:
        measures = alignment.Alignment.from_frame(table)
        medians = {f"median_{name}": value for name, value in measures.medians().items()}
        summary |= {"evaluated": len(table), "undefined_rows": measures.undefined, **medians}
    for attack, frame in distances.items():
        values = frame["distance"].to_numpy(float)
        success = np.isfinite(values) & (values > 0)
        summary[f"median_{attack}"] = float(np.median(values[success])) if success.any() else None
        summary[f"success_{attack}"] = float(np.isfinite(values).mean())
    return summary


def read(folder: str | Path) -> Cohort:
    """A cohort from its run folder alone, without its models; failed members are left out.

    Raises:
        CohortError: the folder holds no cohort, or one that is not finished.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "run.json").read_text())
        shared = json.loads((folder / "cohort.json").read_text())
        with np.load(folder / "pictures.npz", allow_pickle=False) as archive:
            pictures = archive["pictures"]
        all_members = [members.Member(**each) for each in shared["members"]]
        progress = members.progress_of(folder, all_members, COMPLETE)
        results = read_members(folder, progress.finished)
    except (OSError, ValueError, KeyError) as error:
        raise CohortError(
            f"{folder} holds no run of a cohort ({type(error).__name__}: {error}). Give the folder "
            "that `python -m experiments.etmann2019.mnist` or `.imagenet` wrote."
        ) from error
    if progress.pending:
        names = ", ".join(member.name for member in progress.pending)
        raise CohortError(
            f"the run in {folder} is not finished ({names}). Run it again with the same settings: "
            "it is resumed where it stopped."
        )
    return Cohort(shared["name"], shared["lead"], results, pictures, record["settings"], record)


def read_members(folder: Path, finished: Sequence[members.Member]) -> tuple[Member, ...]:
    """The results of finished members."""
    return tuple(_read_member(folder / member.folder, member) for member in finished)


def partial_summary(place: Path) -> dict[str, Any] | None:
    """The summary of a member, of the steps that are finished; None before the first is."""
    if (place / "summary.json").exists():
        return json.loads((place / "summary.json").read_text())
    if not (place / "test.json").exists():
        return None
    measured = place / "alignment.parquet"
    return summarize(
        json.loads((place / "test.json").read_text()),
        pd.read_parquet(measured) if measured.exists() else None,
        _distances(place),
    )


def _read_member(place: Path, member: members.Member) -> Member:
    with np.load(place / "gradients.npz", allow_pickle=False) as archive:
        gradients = archive["gradients"]
    return Member(
        settings=member.settings,
        summary=json.loads((place / "summary.json").read_text()),
        alignment=pd.read_parquet(place / "alignment.parquet"),
        distances=_distances(place),
        gradients=gradients,
    )


def _distances(place: Path) -> dict[str, pd.DataFrame]:
    known = list(ATTACK_NAMES)
    names = [path.stem.removeprefix("attack-") for path in sorted(place.glob("attack-*.parquet"))]
    names.sort(key=lambda name: known.index(name) if name in known else len(known))
    return {name: pd.read_parquet(place / f"attack-{name}.parquet") for name in names}
