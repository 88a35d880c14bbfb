"""A cohort's results: what its run folder holds, read without its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import members
from tfrobust import alignment
from tfrobust.errors import InputError
from tfrobust.report import Results

ATTACK_NAMES = {
    "gradient": "gradient attack",
    "basic_iterative": "l2 basic iterative",
    "carlini_wagner": "Carlini-Wagner l2",
}
_SHARED = ("run.json", "cohort.json", "pictures.npz")
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
        counted = values[values > 0]  # a failed attack counts as infinitely far
        summary[f"median_{attack}"] = float(np.median(counted)) if len(counted) else None
        summary[f"success_{attack}"] = float(np.isfinite(values).mean())
    return summary


def read(folder: str | Path) -> Cohort:
    """A cohort from its run folder alone, without its models; failed members are left out.

    Raises:
        CohortError: the folder holds no cohort, or one that is not finished.
        RunFolderError: a file in it is damaged, or of other settings; names it.
    """
    folder = Path(folder)
    missing = [name for name in _SHARED if not (folder / name).exists()]
    if missing:
        raise CohortError(
            f"{folder} holds no run of a cohort (it has no {missing[0]}). Give the folder that "
            "`python -m experiments.etmann2019.mnist` or `.imagenet` wrote."
        )
    results = Results.open(folder)
    shared, pictures = results.read_json("cohort.json"), results.read_arrays("pictures.npz")
    try:
        all_members = [members.Member(**each) for each in shared["members"]]
        name, lead, pictures = shared["name"], shared["lead"], pictures["pictures"]
    except (KeyError, TypeError) as error:
        raise CohortError(
            f"{folder / 'cohort.json'} or pictures.npz is not of a cohort ({error!r}): run it "
            "again with the same settings"
        ) from error
    progress = members.progress_of(folder, all_members, COMPLETE)
    if progress.pending:
        names = ", ".join(member.name for member in progress.pending)
        raise CohortError(
            f"the run in {folder} is not finished ({names}). Run it again with the same settings: "
            "it is resumed where it stopped."
        )
    record, finished = results.record, read_members(results, progress.finished)
    return Cohort(name, lead, finished, pictures, record["settings"], record)


def read_members(results: Results, finished: Sequence[members.Member]) -> tuple[Member, ...]:
    """The results of finished members.

    Raises:
        RunFolderError: one is damaged, or of other settings.
    """
    return tuple(_read_member(results, member) for member in finished)


def partial_summary(results: Results, place: str) -> dict[str, Any] | None:
    """The summary of the member in a folder, of the steps that are finished; None before the first.

    Raises:
        RunFolderError: a result is damaged, or of other settings.
    """
    if results.exists(f"{place}/summary.json"):
        return results.read_json(f"{place}/summary.json")
    if not results.exists(f"{place}/test.json"):
        return None
    measured = f"{place}/alignment.parquet"
    return summarize(
        results.read_json(f"{place}/test.json"),
        results.read_frame(measured) if results.exists(measured) else None,
        _distances(results, place),
    )


def _read_member(results: Results, member: members.Member) -> Member:
    place = member.folder
    return Member(
        settings=member.settings,
        summary=results.read_json(f"{place}/summary.json"),
        alignment=results.read_frame(f"{place}/alignment.parquet"),
        distances=_distances(results, place),
        gradients=results.read_arrays(f"{place}/gradients.npz")["gradients"],
    )


def _distances(results: Results, place: str) -> dict[str, pd.DataFrame]:
    known = list(ATTACK_NAMES)
    files = sorted((results.folder / place).glob("attack-*.parquet"))
    names = [path.stem.removeprefix("attack-") for path in files]
    names.sort(key=lambda name: known.index(name) if name in known else len(known))
    return {name: results.read_frame(f"{place}/attack-{name}.parquet") for name in names}
